import uuid

import libvirt
import pytest

from ddfs import errors
from ddfs.virt.domains import Domains

QUIET = """
<domain type='{kind}'><name>{name}</name><uuid>{uuid}</uuid>
<memory>8192</memory><os><type>hvm</type></os>
<devices><disk type='file' device='disk'><source file='/x/{disk}'/><target dev='vda'/></disk>
</devices></domain>
"""


async def define(connection, name, kind="test", disk="disk.qcow2"):
    xml = QUIET.format(name=name, uuid=uuid.uuid5(uuid.NAMESPACE_DNS, name), kind=kind, disk=disk)
    await connection.call(lambda c: c.defineXML(xml))


async def test_domains_xml(driver):
    domains = Domains(driver)
    await define(driver, "vm1")
    assert b"<source file='/x/disk.qcow2'/>" in await domains.domain_xml("vm1")
    assert b"<domain type='test' id='1'>" in await domains.domain_xml("test", live=True)
    assert b"<domain type='test'>" in await domains.domain_xml("test")


async def test_domains_start(driver):
    domains = Domains(driver)
    await define(driver, "vm1")
    assert not await domains.is_active("vm1")
    await domains.start("vm1")
    assert await domains.is_active("vm1")
    with pytest.raises(errors.LibvirtError, match=r"vm1 is not started: .* already running"):
        await domains.start("vm1")


async def test_domains_unknown(driver):
    domains = Domains(driver)
    for method in (domains.domain_xml, domains.start, domains.is_active):
        with pytest.raises(errors.LibvirtError, match="no domain called 'none'; virsh list") as e:
            await method("none")
        assert e.value.code == libvirt.VIR_ERR_NO_DOMAIN


async def test_domains_all_xml_has_what_runs_and_what_runs_next(driver):
    domains = Domains(driver)
    await define(driver, "vm1")
    await domains.start("vm1")
    await define(driver, "vm1", disk="another.qcow2")
    found = await domains.all_xml()
    assert set(found) >= {"test", "vm1", "vm1 (when started again)"}
    assert b"disk.qcow2" in found["vm1"]
    assert b"another.qcow2" in found["vm1 (when started again)"]


async def test_domains_all_xml_of_a_real_libvirtd(connection):
    domains = Domains(connection)
    assert await domains.all_xml() == {}
    await define(connection, "vm1", kind="qemu")
    assert list(await domains.all_xml()) == ["vm1"]
    assert not await domains.is_active("vm1")
