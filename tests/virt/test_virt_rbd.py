"""Pools of type rbd, as libvirt describes them; its own test driver stands for libvirtd."""

import pytest
from defusedxml.ElementTree import fromstring

from ddfs import errors
from ddfs.virt.rbd import RbdPools, described

RBD = "http://libvirt.org/schemas/storagepool/rbd/1.0"

POOL = f"""
<pool type='rbd' xmlns:rbd='{RBD}'><name>ceph</name><source>
<host name='mon1.example' port='6789'/><host name='2001:db8::1'/><host name='192.0.2.1' port='0'/>
<name>vms</name>{{auth}}</source>
<rbd:config_opts><rbd:option name='client_mount_timeout' value='45'/></rbd:config_opts></pool>
"""

AUTH = "<auth type='ceph' username='libvirt'><secret {}/></auth>"

NODE = """
<node><pool type='dir'><name>files</name><target><path>/nowhere</path></target></pool>
<pool type='rbd'><name>ceph</name><source><host name='h'/><name>vms</name></source>
<volume><name>old</name><capacity>4096</capacity><target><path>vms/old</path></target></volume></pool>
<pool type='rbd'><name>closed</name><source><host name='h'/><name>vms2</name>
<auth type='ceph' username='u'><secret uuid='2ec115d7-3a88-3ceb-bc12-0ac909a6fd87'/></auth>
</source></pool></node>
"""


@pytest.fixture
def pools(tmp_path):
    (tmp_path / "node.xml").write_text(NODE)
    return RbdPools(f"test://{tmp_path}/node.xml")


def test_a_description_with_everything():
    auth = AUTH.format("usage='ceph'")
    found = described(fromstring(POOL.format(auth=auth)), b"key")
    assert found.name == "vms"
    assert found.monitors == ("mon1.example:6789", "[2001:db8::1]", "192.0.2.1")
    assert (found.user, found.key) == ("libvirt", b"key")
    assert found.options == (("client_mount_timeout", "45"),)
    assert found.secret == ("usage", "ceph")


def test_a_description_without_a_user():
    found = described(fromstring(POOL.format(auth="")), b"")
    assert (found.user, found.key, found.secret) == (None, b"", None)


def test_what_is_no_name_is_refused():
    with pytest.raises(errors.InvalidValueError, match="'vms/ns' as its pool"):
        described(fromstring(POOL.format(auth="").replace(">vms<", ">vms/ns<")), b"")


def test_only_rbd_pools_are_found(pools):
    found = pools.find("ceph")
    assert (found.name, found.monitors, found.user) == ("vms", ("h",), None)
    assert pools.find("files") is None
    assert pools.find("not there") is None


def test_a_secret_that_libvirt_does_not_give(pools):
    with pytest.raises(errors.LibvirtError, match=r"pool closed: .* secret 2ec115d7-.*secret-set"):
        pools.find("closed")


def test_a_name_that_is_taken_stays_whose_it_was(pools):
    with pytest.raises(errors.NameTakenError, match="pool ceph has a volume old already"):
        pools.create("ceph", "old", 4096)
    pools.create("ceph", "new <&>", 4096)
    pools.delete("ceph", "not there")
    assert (pools.has("ceph", "old"), pools.has("ceph", "not there")) == (True, False)
    assert pools.free_bytes("ceph") > 0
    with pytest.raises(errors.LibvirtError, match="no storage pool"):
        pools.create("not there", "new", 4096)
