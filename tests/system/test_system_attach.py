"""``ddfs attach``, ``ddfs gate`` and ``ddfs autostart`` with real domains."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.processes import wait_until
from lab.site import MIB, Published, Site, site

DRIVE = (
    "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>"
    "<target dev='sdc' bus='sata'/><readonly/></disk>"
)


@pytest.fixture
def guest(host: Host, libvirtd: Libvirtd, small: Published) -> Domain:
    """Defined, with an overlay on ``small``, which is not here, and an empty drive."""
    libvirtd.install_hook(host.hook())
    host.ddfs("template", "add", "small", small.source)
    template = host.templates / "small.qcow2"
    top = make_overlay(host.vms / "vm1.qcow2", template, virtual_size=8 * MIB)
    domain = Domain("vm1", (Disk(top),), host.vms / "vm1.serial", devices=DRIVE)
    libvirtd.define(domain, host.vms)
    return domain


def disks(libvirtd: Libvirtd, *options: str) -> dict[str, str]:
    lines = libvirtd.virsh("domblklist", "vm1", *options).stdout.splitlines()
    return dict(line.split() for line in lines if line.strip())


@pytest.mark.parametrize("is_running", [True, False])
def test_attach_fetches_and_gives_it_to_the_domain(
    host: Host,
    libvirtd: Libvirtd,
    guest: Domain,
    fast_site: Site,
    is_running: bool,
    directory: Path,
) -> None:
    if is_running:
        libvirtd.virsh("start", "vm1")
    with site(directory / "more", [None]) as shop:
        for name, image_format in (("cd", "raw"), ("data", "qcow2")):
            publish = shop.publish_raw if image_format == "raw" else shop.publish
            source = publish(name, size=4 * MIB, seed=len(name)).source
            host.ddfs("template", "add", name, source, "--format", image_format)
        if not is_running:
            refused = host.ddfs("attach", "vm1", "cd", "sdc", check=False)
            assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)
            assert "vm1 is not running; with --persistent" in refused.stderr
            assert host.template("cd")["state"] == "not-downloaded", "it asked first"
            assert disks(libvirtd)["sdc"] == "-"
        more = [] if is_running else ["--persistent"]
        assert "the medium at sdc" in host.ddfs("attach", "vm1", "cd", "sdc", *more).stdout
        assert "a read-only disk at vdb" in host.ddfs("attach", "vm1", "data", "vdb", *more).stdout
    found = disks(libvirtd)
    assert found["sdc"] == str(host.templates / "cd.img")
    assert found["vdb"] == str(host.templates / "data.qcow2")
    assert ("vdb" in disks(libvirtd, "--inactive")) is not is_running
    if is_running:
        assert disks(libvirtd, "--inactive")["sdc"] == "-"
        host.ddfs("attach", "vm1", "cd", "sdc", "--persistent")
        assert disks(libvirtd, "--inactive")["sdc"] == found["sdc"]
    else:
        libvirtd.virsh("start", "vm1")


def test_attach_refuses_in_one_line(host: Host, libvirtd: Libvirtd, guest: Domain) -> None:
    for words, code, says in (
        (["none", "small", "vdb"], 4, "no domain called 'none'"),
        (["vm1", "small", "vda", "--persistent"], 2, "has a disk at vda already"),
        (["vm1", "small", "../x"], 2, "no place for a disk"),
        (["vm1", "other", "vdb"], 2, "no template"),
    ):
        refused = host.ddfs("attach", *words, check=False)
        assert refused.returncode == code, refused.stderr
        assert says in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert host.template("small")["state"] == "not-downloaded", "nothing was fetched for it"


def test_gate_explains_file_by_file(host: Host, libvirtd: Libvirtd, guest: Domain) -> None:
    explained = host.ddfs("gate", "--domain", "vm1", "--json", check=False)
    assert explained.returncode == 1
    report = json.loads(explained.stdout)
    assert [(f["path"], f["role"], f["state"]) for f in report["files"]] == [
        (str(host.vms / "vm1.qcow2"), "disk", "local"),
        (str(host.templates / "small.qcow2"), "backing", "not-downloaded"),
    ]
    assert "ddfs prefetch small" in report["files"][1]["problem"]
    assert "small.qcow2 is 0 % here" in report["message"]
    assert host.template("small")["state"] == "not-downloaded", "it only explains"
    host.ddfs("prefetch", "small")
    assert host.ddfs("gate", "--domain", "vm1").stdout.splitlines()[-1] == "vm1 may start"
    published = host.published("small")
    xml = host.vms / "own.xml"
    xml.write_text(Domain("vm2", (Disk(published),)).xml)
    refused = host.ddfs("gate", "--xml", xml, check=False)
    assert refused.returncode == 1
    assert "must not be written to" in refused.stdout


def test_autostart_starts_each_domain_when_its_templates_are_here(
    host: Host, libvirtd: Libvirtd, guest: Domain, small: Published
) -> None:
    libvirtd.virsh("autostart", "vm1")
    host.ddfs("autostart", "enable", "vm1")
    assert "disable" in libvirtd.virsh("dominfo", "vm1").stdout
    assert "urn:ddfs:autostart" in libvirtd.virsh("dumpxml", "vm1").stdout
    plain = Domain("vm2", (), host.vms / "vm2.serial")
    libvirtd.define(plain, host.vms)
    host.ddfs("autostart", "enable", "vm2")
    libvirtd.define(Domain("vm3", ()), host.vms)
    libvirtd.stop()
    libvirtd.start()
    done = json.loads(host.ddfs("autostart", "run", "--json").stdout)
    assert sorted(done["started"]) == ["vm1", "vm2"]
    wait_until(lambda: small.line in guest.serial_text(), "it boots")
    assert libvirtd.virsh("domstate", "vm3").stdout.strip() == "shut off"
    again = json.loads(host.ddfs("autostart", "run", "--json").stdout)
    assert again == {"started": [], "failed": {}}
    host.ddfs("autostart", "disable", "vm1")
    assert "urn:ddfs:autostart" not in libvirtd.virsh("dumpxml", "vm1", "--inactive").stdout
    assert "Autostart:      enable" in libvirtd.virsh("dominfo", "vm1").stdout


@pytest.mark.parametrize("name", ["Grüße, 'vm' \"1\" & <2>", "-x", "a b%2Fc?d=e#f"])
def test_names_of_domains_are_any(
    host: Host, libvirtd: Libvirtd, guest: Domain, small: Published, name: str
) -> None:
    domain = dataclasses.replace(guest, name=name)
    xml = host.vms / "named.xml"
    xml.write_text(domain.xml)
    libvirtd.virsh("undefine", "vm1")
    libvirtd.virsh("define", xml)
    assert host.ddfs("gate", "--domain", name, check=False).returncode == 1
    host.ddfs("autostart", "enable", "--", name)
    host.ddfs("start", "--", name)
    wait_until(lambda: small.line in domain.serial_text(), "it boots")
    assert host.ddfs("gate", "--domain", name).returncode == 0
    host.ddfs("attach", "--", name, "small", "vdb")
