"""The main job: a VM boots from a template that was not here when it was started."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.processes import wait_until
from lab.readers import Readers
from lab.site import MIB, Published, Site, site

MakeVm = Callable[[Host, str, Path], Domain]


def boots(domain: Domain, line: str) -> None:
    wait_until(lambda: line in domain.serial_text(), f"{domain.name} prints its line")


def identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def test_a_start_fetches_the_template_and_the_next_one_asks_for_nothing(
    host: Host, libvirtd: Libvirtd, small: Published, make_vm: MakeVm
) -> None:
    host.ddfs("template", "add", "small", small.source)
    template = host.templates / "small.qcow2"
    before = small.requests()
    first, second = make_vm(host, "vm1", template), make_vm(host, "vm2", template)
    assert small.requests() == before
    libvirtd.virsh("start", "vm1")
    boots(first, small.line)
    fetched = small.requests()
    assert fetched > before
    libvirtd.virsh("start", "vm2")
    boots(second, small.line)
    assert small.requests() == fetched


def test_an_overlay_made_without_a_size_starts_the_fetch(
    host: Host, libvirtd: Libvirtd, small: Published
) -> None:
    """qemu-img then reads the template as any reader does, and gets its bytes."""
    libvirtd.install_hook(host.hook())
    host.ddfs("template", "add", "small", small.source)
    overlay = make_overlay(host.vms / "vm1.qcow2", host.templates / "small.qcow2")
    domain = Domain("vm1", (Disk(overlay),), host.vms / "vm1.serial")
    libvirtd.define(domain, host.vms)
    libvirtd.virsh("start", "vm1")
    boots(domain, small.line)


def test_a_published_template_is_the_file_in_primary_storage(
    host: Host, libvirtd: Libvirtd, small: Published, make_vm: MakeVm
) -> None:
    host.ddfs("template", "add", "small", small.source)
    host.ddfs("pool", "define", "--name", "templates")
    make_vm(host, "vm1", host.templates / "small.qcow2")
    libvirtd.virsh("start", "vm1")
    published = host.published("small")
    assert published.parent == host.images
    assert published.name == f"small@{small.sha256[:12]}.qcow2"
    assert published.stat().st_mode & 0o777 == 0o444
    libvirtd.virsh("pool-refresh", "templates")
    through_pool = libvirtd.virsh("vol-path", "small.qcow2", "templates").stdout.strip()
    assert identity(Path(through_pool)) == identity(published)
    # QEMU may hold it under the name of the link's target only if that is the same inode.
    open_files = Path(f"/proc/{libvirtd.qemu_pid('vm1')}/fd")
    targets = {identity(fd) for fd in open_files.iterdir() if os.path.exists(fd)}
    assert identity(published) in targets
    assert Readers(published).results()[0].sha256 == small.sha256


def test_a_start_that_outlasts_the_window_is_refused_with_progress(
    directory: Path, libvirtd: Libvirtd, make_vm: MakeVm
) -> None:
    with site(directory, [6 * MIB]) as shop, Host(directory / "host", gate_wait=1.5) as host:
        image = shop.publish("slow", size=48 * MIB)
        host.serve()
        host.ddfs("template", "add", "slow", image.source)
        domain = make_vm(host, "vm1", host.templates / "slow.qcow2")
        host.ddfs("prefetch", "slow", "--no-wait")
        wait_until(lambda: host.template("slow")["bytes_here"] > MIB, "the fetch runs")
        # Who waits for more than the window waits for this one, until a minute has passed.
        shop.mirrors[0].pause()
        refused = libvirtd.virsh("start", "vm1", check=False)
        assert host.template("slow")["state"] == "downloading"
        shop.mirrors[0].resume()
        assert refused.returncode != 0
        assert "slow.qcow2 is " in refused.stderr
        assert "% here" in refused.stderr
        assert "ddfs start vm1" in refused.stderr
        # The fetch goes on; `ddfs start` waits for it outside of libvirt.
        host.ddfs("start", "vm1")
        boots(domain, image.line)


def test_gate_then_start_starts_the_domain_once_it_is_complete(
    directory: Path, libvirtd: Libvirtd, make_vm: MakeVm
) -> None:
    with (
        site(directory, [8 * MIB]) as shop,
        Host(directory / "host", gate_wait=0.5, gate_then="start") as host,
    ):
        image = shop.publish("later", size=32 * MIB)
        host.serve()
        host.ddfs("template", "add", "later", image.source)
        domain = make_vm(host, "vm1", host.templates / "later.qcow2")
        assert libvirtd.virsh("start", "vm1", check=False).returncode != 0
        boots(domain, image.line)


def test_without_a_daemon_published_templates_start_and_others_are_refused(
    host: Host, libvirtd: Libvirtd, fast_site: Site, small: Published, make_vm: MakeVm
) -> None:
    absent = fast_site.publish("absent", size=4 * MIB)
    host.ddfs("template", "add", "small", small.source)
    host.ddfs("template", "add", "absent", absent.source)
    here = make_vm(host, "vm1", host.templates / "small.qcow2")
    make_vm(host, "vm2", host.templates / "absent.qcow2")
    host.ddfs("prefetch", "small")
    assert host.stop() == 0
    assert not host.is_mounted()
    libvirtd.virsh("start", "vm1")
    boots(here, small.line)
    refused = libvirtd.virsh("start", "vm2", check=False)
    assert refused.returncode != 0
    assert "ddfs serve" in refused.stderr


def test_a_running_vm_does_not_notice_the_end_of_the_daemon(
    host: Host, libvirtd: Libvirtd, small: Published, make_vm: MakeVm
) -> None:
    host.ddfs("template", "add", "small", small.source)
    domain = make_vm(host, "vm1", host.templates / "small.qcow2")
    libvirtd.virsh("start", "vm1")
    boots(domain, small.line)
    host.kill()
    libvirtd.virsh("reset", "vm1")
    wait_until(lambda: domain.serial_text().count(small.line) == 2, "it boots again")
    host.serve()
    assert libvirtd.virsh("domstate", "vm1").stdout.strip() == "running"
    assert host.template("small")["state"] == "downloaded"


def test_a_domain_that_uses_nothing_of_ddfs_starts_without_a_daemon(
    host: Host, libvirtd: Libvirtd, small: Published, make_vm: MakeVm
) -> None:
    host.stop()
    domain = make_vm(host, "vm1", small.image)
    libvirtd.virsh("start", "vm1")
    boots(domain, small.line)
