"""What ddfs costs libvirt: starts and stops with the hook, a crowd of starts, silent mirrors."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bench_main import Report
from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import HOOKS, URI, Libvirtd
from lab.processes import LabError, wait_until
from lab.site import MIB, Published, Site, site

RUNS: Final = 100
# So many with the hook, then as many without, in turns: the machine's mood is the same for both.
BLOCK: Final = 5
HOOK_BAR_SECONDS: Final = 0.070

DOMAINS: Final = 30
TEMPLATES: Final = 5
GATE_WAIT: Final = 5.0
LIST_BAR_SECONDS: Final = GATE_WAIT + 2

# libvirtd's own read of a header waits two seconds at most.
ATTACH_BAR_SECONDS: Final = 5.0
DRIVE: Final = (
    "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>"
    "<target dev='sdc' bus='sata'/><readonly/></disk>"
)


def run(directory: Path, arguments: Sequence[str]) -> bool:
    """All of them; whether every bar was reached."""
    if arguments:
        raise LabError(f"libvirt takes no arguments: {' '.join(arguments)}")
    report = Report()
    with contextlib.ExitStack() as stack:
        libvirtd = stack.enter_context(Libvirtd(directory))
        host = stack.enter_context(Host(directory / "host", gate_wait=GATE_WAIT))
        fast = stack.enter_context(site(directory / "fast", [None]))
        slow = stack.enter_context(site(directory / "slow", [MIB]))
        host.serve()
        libvirtd.install_hook(host.hook())
        small = fast.publish("small", size=8 * MIB)
        host.ddfs("template", "add", "small", small.source)
        host.ddfs("prefetch", "small")
        _starts(report, host, libvirtd)
        _crowd(report, host, libvirtd, slow)
        _silence(report, host, libvirtd, small, directory)
    return report.all_reached


def _starts(report: Report, host: Host, libvirtd: Libvirtd) -> None:
    """Paused: the guest's own work is no part of it."""
    overlay = make_overlay(host.vms / "one.qcow2", host.templates / "small.qcow2")
    libvirtd.define(Domain("one", (Disk(overlay),), memory_mib=16), host.vms)
    hook = host.hook()
    times: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(2 * RUNS // BLOCK):
        kind = ("with", "without")[number % 2]
        if kind == "with":
            libvirtd.install_hook(hook)
        else:
            (HOOKS / "qemu").unlink()
        for _ in range(BLOCK):
            began = time.perf_counter()
            libvirtd.virsh("start", "one", "--paused")
            libvirtd.virsh("destroy", "one")
            times[kind].append(time.perf_counter() - began)
    libvirtd.install_hook(hook)
    ours, theirs = statistics.median(times["with"]), statistics.median(times["without"])
    report.line(
        f"start and stop, published template, median of {RUNS}",
        f"{ours * 1e3:.0f} ms (without the hook {theirs * 1e3:.0f} ms)",
        f"{HOOK_BAR_SECONDS * 1e3:.0f} ms more ({(ours - theirs) * 1e3:.0f})",
        reached=ours - theirs <= HOOK_BAR_SECONDS,
    )


def _crowd(report: Report, host: Host, libvirtd: Libvirtd, slow: Site) -> None:
    images = [slow.publish(f"t{n}", size=12 * MIB, seed=n) for n in range(TEMPLATES)]
    for number, image in enumerate(images):
        host.ddfs("template", "add", f"t{number}", image.source)
    before = [image.bytes_sent() for image in images]
    plain = [image.image for image in images]
    alone = _together(host, libvirtd, "plain", plain)[1]
    templates = [host.templates / f"t{number}.qcow2" for number in range(TEMPLATES)]
    results, listed = _together(host, libvirtd, "crowd", templates)
    refused = [result for result in results if result.returncode != 0]
    told = sum("% here" in result.stderr and "ddfs start" in result.stderr for result in refused)
    report.line(
        f"{DOMAINS} starts on {TEMPLATES} unfetched templates: virsh list",
        f"at most {listed:.1f} s (on plain files {alone:.1f} s)",
        f"{LIST_BAR_SECONDS:.0f} s (gate.wait + 2)",
        reached=listed <= LIST_BAR_SECONDS,
    )
    host.ddfs("prefetch", *(f"t{number}" for number in range(TEMPLATES)))
    sent = sum(image.bytes_sent() for image in images) - sum(before)
    ratio = sent / sum(image.size for image in images)
    report.line(
        "the same: what was fetched, what was said",
        f"{ratio:.2f} of the bytes, {told} of {len(refused)} refusals say so",
        "once (1.1), all",
        reached=ratio <= 1.1 and told == len(refused),
    )


def _together(
    host: Host, libvirtd: Libvirtd, prefix: str, bases: Sequence[Path]
) -> tuple[list[subprocess.CompletedProcess[str]], float]:
    """The results of starting them all at once, and the longest `virsh list` meanwhile."""
    names = [f"{prefix}{number}" for number in range(DOMAINS)]
    for number, name in enumerate(names):
        base = bases[number % len(bases)]
        top = make_overlay(host.vms / f"{name}.qcow2", base, virtual_size=12 * MIB)
        libvirtd.define(Domain(name, (Disk(top),), memory_mib=16), host.vms)
    listed = 0.0
    with ThreadPoolExecutor(DOMAINS) as pool:
        starts = [pool.submit(_virsh, "start", name, "--paused") for name in names]
        while not all(start.done() for start in starts):
            began = time.monotonic()
            _virsh("list", "--all")
            listed = max(listed, time.monotonic() - began)
            time.sleep(0.1)
    results = [start.result() for start in starts]
    for name, result in zip(names, results, strict=True):
        if result.returncode == 0:
            libvirtd.virsh("destroy", name)
        libvirtd.virsh("undefine", name)
    return results, listed


def _virsh(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["virsh", "-q", "-c", URI, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def _silence(
    report: Report, host: Host, libvirtd: Libvirtd, small: Published, directory: Path
) -> None:
    """A medium and a disk from a mirror that says nothing, for a guest that runs."""
    with site(directory / "silent", [None]) as silent:
        for name, publish in (("cd", silent.publish_raw), ("stuck", silent.publish)):
            suffix = "raw" if name == "cd" else "qcow2"
            source = publish(name, size=8 * MIB, seed=len(name)).source
            host.ddfs("template", "add", name, source, "--format", suffix)
        silent.mirrors[0].pause()
        disk = host.vms / "disk.xml"
        disk.write_text(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
            f"<source file='{host.templates}/stuck.qcow2'/><target dev='vdb' bus='virtio'/>"
            "<readonly/></disk>"
        )
        medium = ("change-media", "guest", "sdc", str(host.templates / "cd.img"), "--insert")
        attach = ("attach-device", "guest", str(disk))
        for what, words in (("an ISO", medium), ("a qcow2", attach)):
            top = make_overlay(host.vms / "guest.qcow2", host.templates / "small.qcow2")
            domain = Domain("guest", (Disk(top),), host.vms / "guest.serial", devices=DRIVE)
            libvirtd.define(domain, host.vms)
            libvirtd.virsh("start", "guest")
            wait_until(lambda d=domain: small.line in d.serial_text(), "the guest boots")
            tried = _timed(lambda w=words: _virsh(*w))
            listed = _timed(lambda: _virsh("list"))
            seen = domain.serial_text().count(small.line)
            libvirtd.virsh("reset", "guest")
            wait_until(lambda d=domain, n=seen: d.serial_text().count(small.line) > n, "it runs")
            destroyed = _timed(lambda: libvirtd.virsh("destroy", "guest"))
            libvirtd.virsh("undefine", "guest")
            (host.vms / "guest.serial").unlink()
            report.line(
                f"attach of {what} from a silent mirror",
                f"fails in {tried:.2f} s; list {listed:.2f} s, destroy {destroyed:.2f} s",
                f"{ATTACH_BAR_SECONDS:.0f} s each, guest runs on",
                reached=max(tried, listed, destroyed) <= ATTACH_BAR_SECONDS,
            )


def _timed(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began
