"""A template that is not here and whose mirror is silent is given to a running guest: no hook
runs, and neither the guest nor libvirt may hang.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.processes import wait_until
from lab.site import MIB, Published, Site, site

EMPTY_DRIVE = (
    "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>"
    "<target dev='sdc' bus='sata'/><readonly/></disk>"
)


@pytest.fixture
def silent(directory: Path) -> Iterator[Site]:
    with site(directory / "silent", [None]) as shop:
        yield shop


@pytest.fixture
def guest(host: Host, libvirtd: Libvirtd, small: Published, silent: Site) -> Domain:
    """It runs on a published template and has an empty cdrom drive; ``stuck`` is registered as
    a qcow2 and ``cd`` as a raw image, and from now on their mirror says nothing.
    """
    libvirtd.install_hook(host.hook())
    host.ddfs("template", "add", "small", small.source)
    host.ddfs("prefetch", "small")
    host.ddfs("template", "add", "stuck", silent.publish("stuck", size=8 * MIB, seed=7).source)
    cd = silent.publish_raw("cd", size=8 * MIB, seed=8)
    host.ddfs("template", "add", "cd", cd.source, "--format", "raw")
    overlay = make_overlay(host.vms / "vm1.qcow2", host.templates / "small.qcow2")
    domain = Domain("vm1", (Disk(overlay),), host.vms / "vm1.serial", devices=EMPTY_DRIVE)
    libvirtd.define(domain, host.vms)
    libvirtd.virsh("start", "vm1")
    wait_until(lambda: small.line in domain.serial_text(), "it boots")
    silent.mirrors[0].pause()
    return domain


def disk_xml(host: Host, path: Path, image_format: str) -> Path:
    xml = host.vms / "disk.xml"
    xml.write_text(
        f"<disk type='file' device='disk'><driver name='qemu' type='{image_format}'/>"
        f"<source file='{path}'/><target dev='vdb' bus='virtio'/><readonly/></disk>"
    )
    return xml


Attempt = Callable[[Host, Libvirtd], "tuple[str | Path, ...]"]


def attach_qcow2(host: Host, libvirtd: Libvirtd) -> tuple[str | Path, ...]:
    return "attach-device", "vm1", disk_xml(host, host.templates / "stuck.qcow2", "qcow2")


def attach_raw(host: Host, libvirtd: Libvirtd) -> tuple[str | Path, ...]:
    return "attach-device", "vm1", disk_xml(host, host.templates / "cd.img", "raw")


def change_medium(host: Host, libvirtd: Libvirtd) -> tuple[str | Path, ...]:
    return "change-media", "vm1", "sdc", host.templates / "cd.img", "--insert"


def shallow_copy(host: Host, libvirtd: Libvirtd) -> tuple[str | Path, ...]:
    """To an overlay, made before, whose backing file is not here."""
    stuck = host.templates / "stuck.qcow2"
    new = make_overlay(host.vms / "new.qcow2", stuck, virtual_size=8 * MIB)
    words = ("--shallow", "--reuse-external", "--transient-job")
    return "blockcopy", "vm1", "vda", new, *words


def block_copy(host: Host, libvirtd: Libvirtd) -> tuple[str | Path, ...]:
    """Onto the template itself, which nobody writes."""
    words = ("--reuse-external", "--transient-job")
    return "blockcopy", "vm1", "vda", host.templates / "stuck.qcow2", *words


def snapshot(host: Host, libvirtd: Libvirtd) -> tuple[str | Path, ...]:
    """The same; libvirt and QEMU take the chain that runs and do not look at the header."""
    new = shallow_copy(host, libvirtd)[3]
    words = ("--disk-only", "--no-metadata", "--reuse-external", "--diskspec")
    return "snapshot-create-as", "vm1", *words, f"vda,file={new}"


REFUSED = [attach_qcow2, attach_raw, change_medium, block_copy]


@pytest.mark.parametrize("attempt", [*REFUSED, shallow_copy, snapshot])
def test_nothing_waits_for_the_silent_mirror(
    host: Host, libvirtd: Libvirtd, guest: Domain, small: Published, attempt: Attempt
) -> None:
    words = attempt(host, libvirtd)
    tried = libvirtd.virsh(*words, check=False)
    if attempt in REFUSED:
        assert tried.returncode != 0
        assert "error" in tried.stderr
    assert libvirtd.virsh("list", "--name").stdout.split() == ["vm1"]
    assert libvirtd.virsh("domstate", "vm1").stdout.strip() == "running"
    # Who waits for the mirror waits until it is given up, which is a minute.
    assert {host.template(name)["last_error"] for name in ("stuck", "cd")} == {None}
    # The guest's processor and disk work: it boots again.
    booted = guest.serial_text().count(small.line)
    libvirtd.virsh("reset", "vm1")
    wait_until(lambda: guest.serial_text().count(small.line) > booted, "it boots again")
    libvirtd.virsh("destroy", "vm1")


def test_the_attempt_starts_the_fetch_and_a_later_one_succeeds(
    host: Host, libvirtd: Libvirtd, guest: Domain, silent: Site
) -> None:
    words = attach_qcow2(host, libvirtd)
    refused = libvirtd.virsh(*words, check=False)
    assert refused.returncode != 0
    assert host.template("stuck")["state"] == "downloading"
    silent.mirrors[0].resume()
    host.wait_for_state("stuck", "downloaded")
    libvirtd.virsh(*words)
    assert "vdb" in libvirtd.virsh("domblklist", "vm1").stdout
