"""The bars of the main job: what listing, reading, waiting and the hook cost."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from lab.bootimage import write_raw
from lab.domain import Disk, Domain
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.many import (
    IMAGE_BYTES,
    fuse_requests,
    register_many,
    requests_to,
    wait_until_quiet,
)
from lab.processes import LabError
from lab.readers import Readers
from lab.site import MIB, Site, site

TEMPLATES: Final = 1000
LISTINGS: Final = 5

READ_BYTES: Final = 512 * MIB
READ_RUNS: Final = 5

HOOK_RUNS: Final = 40
BLOCKED: Final = 200

SHELL_HOOK: Final = '#!/bin/sh\n[ "$2" = prepare ] || exit 0\nexit 0\n'


class Report:
    """Prints a line for each measurement; remembers whether every bar was reached."""

    def __init__(self) -> None:
        self.all_reached = True

    def line(self, what: str, figures: str, bar: str, *, reached: bool) -> None:
        self.all_reached &= reached
        print(f"{what:46} {figures:46} {bar:28} {'ok' if reached else 'MISSED'}", flush=True)


def run(directory: Path, arguments: Sequence[str]) -> bool:
    """All of them; whether every bar was reached."""
    if arguments:
        raise LabError(f"main takes no arguments: {' '.join(arguments)}")
    report = Report()
    with contextlib.ExitStack() as stack:
        libvirtd = stack.enter_context(Libvirtd(directory))
        host = stack.enter_context(Host(directory / "host"))
        shop = stack.enter_context(site(directory / "site", [None, None, None]))
        host.serve()
        libvirtd.install_hook(host.hook())
        _hook(report, host, libvirtd, directory)
        _reading(report, host, shop, directory)
        _listing(report, host, libvirtd, shop, directory)
        _blocked(report, host, libvirtd, shop, directory)
    return report.all_reached


def _listing(report: Report, host: Host, libvirtd: Libvirtd, shop: Site, directory: Path) -> None:
    register_many(host, shop, TEMPLATES)
    host.ddfs("pool", "define", "--name", "templates")
    local = directory / "local"
    local.mkdir()
    for number in range(TEMPLATES):
        with (local / f"t{number:04}.img").open("wb") as file:
            file.truncate(IMAGE_BYTES)
    libvirtd.virsh("pool-create-as", "local", "dir", "--target", local)
    libvirtd.virsh("pool-refresh", "templates")
    wait_until_quiet(host)
    for command, *options in (
        ["pool-refresh"],
        ["vol-list", "--details"],
        ["vol-info", "--vol", "t0500.img"],
    ):
        asked, before = requests_to(shop), fuse_requests(host)

        def through(pool: str, command: str = command, options: list[str] = options) -> float:
            seconds = _median(LISTINGS, lambda: libvirtd.virsh(command, "--pool", pool, *options))
            return seconds / TEMPLATES

        ours, theirs = through("templates"), through("local")
        requests = (fuse_requests(host) - before) / TEMPLATES / LISTINGS
        network = requests_to(shop) - asked
        report.line(
            f"{command}, {TEMPLATES} unfetched, per template",
            f"{ours * 1e3:.2f} ms (local dir {theirs * 1e3:.2f} ms, {ours / theirs:.1f} x), "
            f"{requests:.1f} FUSE",
            f"1.2 ms, 8 FUSE, 0 mirror ({network})",
            reached=ours <= 0.0012 and requests <= 8 and network == 0,
        )


def _reading(report: Report, host: Host, shop: Site, directory: Path) -> None:
    """In turns, and each time another content: nothing is here already."""
    through_mount, direct = [], []
    for number in range(READ_RUNS):
        image = shop.publish(f"read{number}", size=READ_BYTES, seed=number)
        name = image.image.stem
        host.ddfs("template", "add", name, image.source)
        template = host.templates / image.image.name
        began = time.monotonic()
        command = ["dd", f"if={template}", "of=/dev/null", "bs=1M", "status=none"]
        subprocess.run(command, check=True)
        through_mount.append(image.size / (time.monotonic() - began) / MIB)
        host.wait_for_state(name, "downloaded")
        host.ddfs("template", "remove", name, "--purge")
        target = directory / "fetched"
        began = time.monotonic()
        host.ddfs("fetch", image.source, "-o", target)
        direct.append(image.size / (time.monotonic() - began) / MIB)
        target.unlink()
        image.image.unlink()
        for mirror in image.mirrors:
            (mirror.root / image.image.name).unlink()
    ours, theirs = statistics.median(through_mount), statistics.median(direct)
    report.line(
        f"sequential read through the mount, {READ_BYTES // MIB} MiB",
        f"{ours:.0f} MiB/s (ddfs fetch {theirs:.0f} MiB/s)",
        f"0.85 of ddfs fetch ({ours / theirs:.2f})",
        reached=ours >= 0.85 * theirs,
    )


def _hook(report: Report, host: Host, libvirtd: Libvirtd, directory: Path) -> None:
    """Run as libvirt runs it, for a domain that uses nothing of ddfs."""
    disk = write_raw(directory / "plain.img", "plain", MIB)
    domain = Domain("plain", (Disk(disk, format="raw"),))
    libvirtd.define(domain, directory)
    xml = libvirtd.virsh("dumpxml", "plain").stdout
    ours, script = directory / "hook", directory / "script"
    ours.write_text(host.hook())
    script.write_text(SHELL_HOOK)
    for path in (ours, script):
        path.chmod(0o755)
    for operation, allowed in (("prepare", 0.060), ("started", 0.005)):

        def call(path: Path, operation: str = operation) -> None:
            command = [path, "plain", operation, "begin", "-"]
            subprocess.run(command, input=xml, text=True, check=True)

        mine = _median(HOOK_RUNS, lambda: call(ours))
        shell = _median(HOOK_RUNS, lambda: call(script))
        report.line(
            f"hook, {operation}, nothing of ddfs",
            f"{mine * 1e3:.1f} ms (shell script {shell * 1e3:.1f} ms)",
            f"{allowed * 1e3:.0f} ms more ({(mine - shell) * 1e3:.1f})",
            reached=mine - shell <= allowed,
        )


def _blocked(report: Report, host: Host, libvirtd: Libvirtd, shop: Site, directory: Path) -> None:
    names = ["free", "busy"]
    for number, name in enumerate(names, start=100):
        image = shop.publish(name, size=256 * MIB, seed=number)
        host.ddfs("template", "add", name, image.source)
    with site(directory / "stalling", [None]) as stalling:
        host.ddfs("template", "add", "stuck", stalling.publish("stuck", seed=102).source)
        libvirtd.virsh("pool-refresh", "templates")
        stalling.mirrors[0].pause()
        free = Readers(host.templates / "free.qcow2").results()[0].seconds
        refresh = _median(LISTINGS, lambda: libvirtd.virsh("pool-refresh", "templates"))
        blocked = Readers(host.templates / "stuck.qcow2", count=BLOCKED, offset=8 * MIB)
        time.sleep(1)
        busy = Readers(host.templates / "busy.qcow2").results()[0].seconds
        meanwhile = _median(LISTINGS, lambda: libvirtd.virsh("pool-refresh", "templates"))
        if not blocked.is_waiting():
            raise LabError("the readers were not blocked")
        stalling.mirrors[0].resume()
        blocked.results()
    report.line(
        f"another's read beside {BLOCKED} blocked readers",
        f"{256 / busy:.0f} MiB/s (without them {256 / free:.0f} MiB/s)",
        f"full speed ({free / busy:.2f})",
        reached=busy <= 1.2 * free,
    )
    report.line(
        f"pool-refresh beside {BLOCKED} blocked readers",
        f"{meanwhile * 1e3:.0f} ms (without them {refresh * 1e3:.0f} ms)",
        f"no slower ({meanwhile / refresh:.2f})",
        reached=meanwhile <= 1.2 * refresh,
    )


def _median(runs: int, action: Callable[[], object]) -> float:
    """Seconds."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
