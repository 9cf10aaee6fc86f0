"""A libvirt pool of type disk, on a loop device: its volumes are block devices."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab.libvirtd import Libvirtd


def why_not() -> str | None:
    """Why there can be none here."""
    for program in ("losetup", "partx", "parted"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not os.path.exists("/dev/loop-control"):
        return "there are no loop devices"
    return None


@contextlib.contextmanager
def loop_device(image: Path, *options: str) -> Iterator[Path]:
    """A block device that is *image*; its partitions go with it."""
    device = Path(_run("losetup", "--find", "--show", *options, image).strip())
    try:
        yield device
    finally:
        subprocess.run(["partx", "-d", device], check=False, capture_output=True)
        _run("losetup", "--detach", device)


@contextlib.contextmanager
def disk_pool(libvirtd: Libvirtd, directory: Path, name: str, size: int) -> Iterator[Path]:
    """An active pool called *name*; its device. It was in use before: it is full of bytes."""
    image = directory / f"{name}.disk"
    with image.open("wb") as file:
        file.write(b"\xaa" * size)
    with loop_device(image) as device:
        # libvirt takes what follows the source's own name for the number of a partition, and
        # that of loop0p1 is no number but behind a name that ends in "p".
        link = directory / f"{device.name}p"
        link.symlink_to(device)
        document = directory / f"{name}.xml"
        document.write_text(
            f"<pool type='disk'><name>{name}</name><source><device path='{link}'/>"
            "<format type='gpt'/></source><target><path>/dev</path></target></pool>"
        )
        libvirtd.virsh("pool-define", document)
        libvirtd.virsh("pool-build", name)
        libvirtd.virsh("pool-start", name)
        try:
            yield device
        finally:
            libvirtd.virsh("pool-destroy", name, check=False)
            libvirtd.virsh("pool-undefine", name, check=False)


def volumes(libvirtd: Libvirtd, name: str) -> list[str]:
    """The names of the pool's volumes, as libvirt finds them now."""
    libvirtd.virsh("pool-refresh", name)
    listed = libvirtd.virsh("vol-list", name).stdout.splitlines()
    return [line.split()[0] for line in listed if line.strip()]


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
