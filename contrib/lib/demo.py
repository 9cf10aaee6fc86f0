"""The main job, shown on this machine; see contrib/demo."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

TOP: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tests" / "system"))

from lab import bootimage, namespace  # noqa: E402 (the line above makes it importable)
from lab.domain import Disk, Domain, overlay_command  # noqa: E402
from lab.host import Host  # noqa: E402
from lab.libvirtd import Libvirtd  # noqa: E402
from lab.processes import LabError, wait_until  # noqa: E402
from lab.scratch import scratch_directory  # noqa: E402
from lab.site import Site, site  # noqa: E402

MIB: Final = 1024 * 1024

# Some seconds of fetching: long enough to be seen, short enough for the hook's window of 10 s.
IMAGE_BYTES: Final = 300 * MIB
RATES: Final = (26 * MIB, 17 * MIB, 9 * MIB)

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

NAME: Final = "demo"
LINE: Final = "Hello from the guest: booted from a template that ddfs brought."

# How long a real image may take until it says something on its serial port, emulated.
REAL_BOOT_SECONDS: Final = 90


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0:
        return _fail("run it as root: it mounts a file system and starts a libvirtd")
    if len(arguments) > 1:
        return _fail("usage: contrib/demo [SOURCE]", 2)
    namespace.enter()
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _on_signal)
    try:
        with scratch_directory() as directory:
            if arguments:
                _show_source(directory, arguments[0])
            else:
                _show(directory)
    except _EndedBySignal as end:
        return _fail("interrupted; everything is cleaned up", 128 + end.args[0])
    except subprocess.CalledProcessError as error:
        return _fail(f"{shlex.join(map(str, error.cmd))}: {error.stderr or error}")
    except (LabError, OSError, subprocess.TimeoutExpired) as error:
        return _fail(str(error))
    print("\nThat was all; everything is cleaned up.")
    return 0


def _show(directory: Path) -> None:
    with contextlib.ExitStack() as stack:
        _say(f"Making a bootable image: a boot sector and {IMAGE_BYTES // MIB} MiB of data, qcow2")
        image = bootimage.write_qcow2(directory / f"{NAME}.qcow2", LINE, IMAGE_BYTES)

        rates = ", ".join(f"{rate // MIB}" for rate in RATES)
        _say(f"Starting three mirrors on loopback, at {rates} MiB/s; a metalink with pieces")
        shop = stack.enter_context(site(directory / "site", RATES))
        for mirror in shop.mirrors:
            (mirror.root / image.name).hardlink_to(image)
        host, libvirtd = _start_host(stack, directory)
        urls = [word for mirror in shop.mirrors for word in ("--url", mirror.url(image.name))]
        document = shop.documents.root / f"{NAME}.meta4"
        _ddfs(host, "metalink", "make", image, *urls, "-o", document)

        _register(host, libvirtd, shop.documents.url(document.name))
        before = _count(shop, image.name)
        _virsh(libvirtd, "vol-list", "--details", "ddfs")
        asked = _count(shop, image.name) - before
        _say(f"That listing made {asked} requests to the mirrors; nothing is downloaded yet")

        vm = _make_vm(host, libvirtd, "vm1", host.templates / image.name)
        _say("Starting it: libvirt's hook starts the fetch and holds the start until it is done")
        began = time.monotonic()
        _command("virsh start vm1")
        with _progress(host):
            libvirtd.virsh("start", "vm1")
        wait_until(lambda: LINE in vm.serial_text(), "the guest's line on its serial port")
        print(f"    serial port: {LINE}")
        _say(f"Booted {time.monotonic() - began:.1f} s after `virsh start`")

        _show_published(host)
        _show_shares(shop, image)

        before = _count(shop, image.name)
        vm = _make_vm(host, libvirtd, "vm2", host.templates / image.name)
        began = time.monotonic()
        _virsh(libvirtd, "start", "vm2")
        wait_until(lambda: LINE in vm.serial_text(), "the second guest's line")
        asked = _count(shop, image.name) - before
        _say(
            f"A second VM booted in {time.monotonic() - began:.1f} s"
            f" and made {asked} requests to the mirrors"
        )


def _show_source(directory: Path, source: str) -> None:
    with contextlib.ExitStack() as stack:
        host, libvirtd = _start_host(stack, directory)
        _register(host, libvirtd, source)
        _virsh(libvirtd, "vol-list", "--details", "ddfs")
        template = host.template(NAME)
        vm = _make_vm(host, libvirtd, "vm1", Path(template["path"]), is_real=True)
        _say("Fetching it outside of libvirt, since a real image outlasts the hook's window")
        _command("ddfs start vm1")
        subprocess.run([*host.command, "start", "vm1"], check=True)
        _show_published(host)
        _say(f"What the guest says on its serial port, within {REAL_BOOT_SECONDS} s")
        with contextlib.suppress(LabError):
            wait_until(vm.serial_text, "", seconds=REAL_BOOT_SECONDS)
            time.sleep(5)
        for line in vm.serial_text().splitlines()[-12:] or ["(nothing)"]:
            print(f"    {line}")
        state = libvirtd.virsh("domstate", "vm1").stdout.strip()
        _say(f"libvirt says: the VM is {state}")


def _start_host(stack: contextlib.ExitStack, directory: Path) -> tuple[Host, Libvirtd]:
    _say("Starting a libvirtd of our own, hidden from the host's")
    libvirtd = stack.enter_context(Libvirtd(directory))
    host = stack.enter_context(Host(directory / "host"))
    libvirtd.install_hook(host.hook())
    _say("Starting the daemon")
    _command("ddfs serve")
    host.serve()
    return host, libvirtd


def _register(host: Host, libvirtd: Libvirtd, source: str) -> None:
    _say("Registering the template, and the libvirt pool on the mount")
    _ddfs(host, "template", "add", NAME, source)
    _ddfs(host, "pool", "define", "--name", "ddfs")
    libvirtd.virsh("pool-refresh", "ddfs")


def _make_vm(
    host: Host, libvirtd: Libvirtd, name: str, template: Path, *, is_real: bool = False
) -> Domain:
    _say(f"Making {name}: a disk whose backing file is the path in the mount (-u: not opened now)")
    is_iso = template.suffix == ".iso"
    if is_iso:
        disk = Disk(template, format="raw", is_readonly=True, device="cdrom")
    else:
        backing_format = {".qcow2": "qcow2", ".vmdk": "vmdk"}.get(template.suffix, "raw")
        overlay = host.vms / f"{name}.qcow2"
        command = overlay_command(
            overlay,
            template,
            backing_format=backing_format,
            virtual_size=host.template(NAME)["virtual_size"] or template.stat().st_size,
        )
        _command(shlex.join(command))
        subprocess.run(command, check=True, capture_output=True, text=True)
        disk = Disk(overlay)
    domain = Domain(name, (disk,), host.vms / f"{name}.serial")
    if is_real:
        hypervisor = "kvm" if libvirtd.is_kvm_usable() else "qemu"
        domain = replace(domain, memory_mib=1024, hypervisor=hypervisor)
    libvirtd.define(domain, host.vms)
    return domain


def _show_published(host: Host) -> None:
    template = host.template(NAME)
    _say("It is complete: a file in primary storage, and a symlink to it in the mount")
    for path in (Path(template["published_path"]), Path(template["path"])):
        listing = subprocess.run(["ls", "-l", path], capture_output=True, text=True, check=True)
        print(f"    {listing.stdout.strip()}")


def _show_shares(shop: Site, image: Path) -> None:
    _say("Who served how much")
    total = image.stat().st_size
    for mirror in shop.mirrors:
        sent = mirror.bytes_sent(image.name)
        print(f"    {mirror.url('')}  {sent / MIB:6.1f} MiB  {100 * sent / total:5.1f} %")
    print(f"    {'the image itself':24}{total / MIB:6.1f} MiB")


def _count(shop: Site, name: str) -> int:
    return sum(len(mirror.requests(name)) for mirror in shop.mirrors)


@contextlib.contextmanager
def _progress(host: Host) -> Iterator[None]:
    """A bar that follows the daemon while the body runs."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    done = threading.Event()
    columns = ("    ", BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns) as progress:
        template = host.template(NAME)
        bar = progress.add_task(NAME, total=template["size"])

        def follow() -> None:
            while not done.wait(0.2):
                with contextlib.suppress(OSError, LabError):
                    progress.update(bar, completed=host.template(NAME)["bytes_here"])

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join()
            progress.update(bar, completed=host.template(NAME)["bytes_here"])


def _ddfs(host: Host, *arguments: str | Path) -> None:
    _command(shlex.join(["ddfs", *map(str, arguments)]))
    host.ddfs(*arguments)


def _virsh(libvirtd: Libvirtd, *arguments: str) -> None:
    _command(shlex.join(["virsh", *arguments]))
    for line in libvirtd.virsh(*arguments).stdout.strip().splitlines():
        print(f"    {line}")


def _say(text: str) -> None:
    print(f"\n* {text}", flush=True)


def _command(text: str) -> None:
    print(f"  # {text}", flush=True)


def _fail(text: str, code: int = 1) -> int:
    print(f"contrib/demo: {text}", file=sys.stderr)
    return code


def _on_signal(number: int, _frame: FrameType | None) -> None:
    # A second one must not cut the clean-up short.
    for other in ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise _EndedBySignal(number)


class _EndedBySignal(BaseException):
    """Passes through everything, as KeyboardInterrupt does."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
