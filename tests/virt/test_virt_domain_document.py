"""The XML of a deployed domain: our own, and an operator's filled in."""

import dataclasses
import uuid
from string import ascii_lowercase
from xml.etree import ElementTree

import libvirt
import pytest
from private_libvirtd import PrivateLibvirtd

from ddfs import errors
from ddfs.model import RbdPool
from ddfs.virt.domain_document import (
    Machine,
    RbdImage,
    arch_of,
    filled_document,
    memory_bytes_of,
    own_document,
)

GIVEN = """<domain type="kvm"><name>old</name><uuid>1</uuid><memory unit="GiB">2</memory>
<currentMemory unit="GiB">1</currentMemory><vcpu current="1">4</vcpu>
<os><type arch="aarch64" machine="virt">hvm</type></os><devices>
<disk type="block" device="cdrom"><target dev="sda" bus="sata"/></disk>
<disk type="network" device="disk"><driver type="raw"/><source protocol="nbd"/>
<backingStore type="file"/><target dev="vdb" bus="virtio"/></disk>
<interface type="bridge"/></devices></domain>"""


def machine(**more: object) -> Machine:
    return Machine("vm & <co>", "u-u", "/pool/a 'b'.qcow2", "qemu", "x86_64", **more)  # type: ignore[arg-type]


def test_our_own_has_what_a_machine_needs() -> None:
    domain = ElementTree.fromstring(own_document(machine(seed="/pool/s.iso", memory_mib=512)))
    assert domain.findtext("name") == "vm & <co>"
    assert domain.findtext("memory") == "512"
    assert domain.findtext("vcpu") == "1"
    [disk, seed] = domain.findall("devices/disk")
    assert disk.find("source").get("file") == "/pool/a 'b'.qcow2"
    assert (seed.get("device"), seed.find("readonly") is not None) == ("cdrom", True)
    assert domain.find("devices/interface/source").get("network") == "default"
    bare = ElementTree.fromstring(own_document(machine(network="none")))
    assert bare.find("devices/interface") is None


def test_an_operators_document_keeps_what_nothing_is_said_about() -> None:
    domain = ElementTree.fromstring(filled_document(GIVEN, machine(seed="/pool/s.iso")))
    assert (domain.findtext("name"), domain.findtext("uuid")) == ("vm & <co>", "u-u")
    assert (domain.findtext("memory"), domain.findtext("vcpu")) == ("2", "4")
    drive, disk, seed = domain.findall("devices/disk")
    assert drive.find("source") is None
    assert disk.get("type") == "file"
    assert disk.find("source").attrib == {"file": "/pool/a 'b'.qcow2"}
    assert disk.find("driver").get("type") == "qcow2"
    assert disk.find("backingStore") is None
    assert disk.find("target").get("dev") == "vdb"
    assert seed.find("target").get("dev") == "sdb"
    assert domain.find("devices/interface").get("type") == "bridge"
    sized = filled_document(GIVEN, machine(memory_mib=64, vcpus=2, network="lan"))
    domain = ElementTree.fromstring(sized)
    assert (domain.findtext("memory"), domain.findtext("vcpu")) == ("64", "2")
    assert domain.find("currentMemory") is None
    assert domain.find("devices/interface/source").get("network") == "lan"
    without = ElementTree.fromstring(filled_document("<domain/>", machine(network="none")))
    assert without.find("devices/disk/source").get("file") == "/pool/a 'b'.qcow2"


POOL = RbdPool(
    "vms", ("mon1:6789", "192.0.2.1", "[2001:db8::1]:3300", "[2001:db8::2]"), "libvirt", b"k",
    secret=("usage", "ceph vms"),
)  # fmt: skip


def test_disks_in_ceph() -> None:
    made = dataclasses.replace(
        machine(), disk=RbdImage.of(POOL, "vms/vm"), seed=RbdImage.of(POOL, "vms/vm-seed")
    )
    for text in (own_document(made), filled_document(GIVEN, made)):
        domain = ElementTree.fromstring(text)
        by_name = {
            disk.find("source").get("name"): disk
            for disk in domain.findall("devices/disk")
            if disk.find("source") is not None
        }
        assert set(by_name) == {"vms/vm", "vms/vm-seed"}
        assert by_name["vms/vm-seed"].get("device") == "cdrom"
        for disk in by_name.values():
            source = disk.find("source")
            assert (disk.get("type"), source.get("protocol")) == ("network", "rbd")
            assert disk.find("driver").get("type") == "raw"
            assert [host.attrib for host in source.findall("host")] == [
                {"name": "mon1", "port": "6789"},
                {"name": "192.0.2.1"},
                {"name": "2001:db8::1", "port": "3300"},
                {"name": "2001:db8::2"},
            ]
            assert source.find("auth").get("username") == "libvirt"
            secret = source.find("auth/secret")
            assert secret.attrib == {"type": "ceph", "usage": "ceph vms"}
    anybody = dataclasses.replace(
        machine(), disk=RbdImage.of(RbdPool("vms", ("h",)), "vms/vm"), network="none"
    )
    domain = ElementTree.fromstring(own_document(anybody))
    assert domain.find("devices/disk/source/auth") is None


def test_libvirts_schema_allows_disks_in_ceph(libvirtd: PrivateLibvirtd) -> None:
    """And its driver for QEMU takes them: what it could not start it would refuse here."""
    made = dataclasses.replace(
        machine(network="none"),
        name="vm",
        uuid=str(uuid.uuid4()),
        disk=RbdImage.of(POOL, "vms/vm"),
        seed=RbdImage.of(POOL, "vms/vm-seed"),
    )
    connection = libvirt.open(libvirtd.uri)
    flags = libvirt.VIR_DOMAIN_DEFINE_VALIDATE
    domain = connection.defineXMLFlags(own_document(made), flags)
    kept = ElementTree.fromstring(domain.XMLDesc(0))
    names = [source.get("name") for source in kept.findall("devices/disk/source")]
    assert sorted(names) == ["vms/vm", "vms/vm-seed"]
    domain.undefine()
    connection.close()


def test_what_it_asks_for() -> None:
    assert arch_of(GIVEN) == "aarch64"
    assert memory_bytes_of(GIVEN) == 2 * 1024**3
    assert (arch_of("<domain/>"), memory_bytes_of("<domain/>")) == (None, None)


@pytest.mark.parametrize("text", ["", "much", "-1", "1e9", "²", "9" * 5000])
def test_an_amount_of_memory_that_makes_no_sense_is_libvirts_to_refuse(text: str) -> None:
    assert memory_bytes_of(f"<domain><memory>{text}</memory></domain>") is None


def test_where_no_drive_is_free_for_the_seed_it_is_said() -> None:
    drives = "".join(f"<disk device='cdrom'><target dev='sd{c}'/></disk>" for c in ascii_lowercase)
    full = f"<domain><devices>{drives}</devices></domain>"
    with pytest.raises(errors.InvalidValueError, match="sda to sdz are taken"):
        filled_document(full, machine(seed="/pool/s.iso"))


@pytest.mark.parametrize(
    "text",
    ["", "<domain>", "<pool/>", "<!DOCTYPE x [<!ENTITY a 'b'>]><domain>&a;</domain>", "<" * 2**20],
)
def test_what_is_no_domain_is_one_line(text: str) -> None:
    with pytest.raises(errors.InvalidValueError, match="domain XML: ") as caught:
        filled_document(text, machine())
    assert "\n" not in str(caught.value)


def test_a_document_that_goes_too_deep() -> None:
    deep = f"<domain><devices>{'<a>' * 5000}{'</a>' * 5000}</devices></domain>"
    with pytest.raises(errors.InvalidValueError, match="more than 512 levels"):
        filled_document(deep, Machine("vm", "u", "/p/vm.qcow2", "kvm", "x86_64"))
    fine = f"<domain><devices>{'<a>' * 400}{'</a>' * 400}</devices></domain>"
    assert "<name>vm</name>" in filled_document(
        fine, Machine("vm", "u", "/p/vm.qcow2", "kvm", "x86_64")
    )
