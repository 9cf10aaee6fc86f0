"""libvirtd and ddfs end and come back, in any order: no running domain notices."""

from __future__ import annotations

from collections.abc import Callable

from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.processes import wait_until
from lab.site import Published

VMS = 10

Steps = list[Callable[[], object]]


def test_ten_domains_live_through_every_order(
    host: Host, libvirtd: Libvirtd, small: Published
) -> None:
    libvirtd.install_hook(host.hook())
    host.ddfs("template", "add", "small", small.source)
    host.ddfs("pool", "define", "--name", "templates")
    host.ddfs("prefetch", "small")
    template = host.templates / "small.qcow2"
    domains = []
    for number in range(VMS):
        name = f"vm{number}"
        top = make_overlay(host.vms / f"{name}.qcow2", template)
        domain = Domain(name, (Disk(top),), host.vms / f"{name}.serial", memory_mib=32)
        libvirtd.define(domain, host.vms)
        libvirtd.virsh("start", name)
        domains.append(domain)
    wait_until(lambda: all(small.line in d.serial_text() for d in domains), "all boot")
    pids = {d.name: libvirtd.qemu_pid(d.name) for d in domains}
    orders: list[Steps] = [
        [libvirtd.stop, libvirtd.start],
        [host.stop, host.serve],
        [host.stop, libvirtd.stop, libvirtd.start, host.serve],
        [host.kill, libvirtd.kill, libvirtd.start, host.serve],
        [libvirtd.kill, host.kill, host.serve, libvirtd.start],
    ]
    for steps in orders:
        for step in steps:
            step()
        running = set(libvirtd.virsh("list", "--name", "--state-running").stdout.split())
        assert running == set(pids), [getattr(step, "__qualname__", "") for step in steps]
        assert {name: libvirtd.qemu_pid(name) for name in pids} == pids
    # Their processors and disks work.
    for domain in domains:
        libvirtd.virsh("reset", domain.name)
    wait_until(
        lambda: all(d.serial_text().count(small.line) > 1 for d in domains), "all boot again"
    )
