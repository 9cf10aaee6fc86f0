"""Small domains, and the overlays that they write to."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape, quoteattr

# Long enough for the fetch that qemu-img may start by it.
OVERLAY_SECONDS: Final = 60

BOOT_ORDER: Final = "<boot dev='hd'/><boot dev='cdrom'/>"


@dataclass(frozen=True)
class Disk:
    """One disk of a domain."""

    path: Path
    format: str = "qcow2"
    is_readonly: bool = False
    device: str = "disk"

    def xml(self, target: str) -> str:
        bus = "sata" if self.device == "cdrom" else "virtio"
        return (
            f"<disk type='file' device='{self.device}'><driver name='qemu' type='{self.format}'/>"
            f"<source file={quoteattr(str(self.path))}/><target dev='{target}' bus='{bus}'/>"
            f"{'<readonly/>' if self.is_readonly else ''}</disk>"
        )


@dataclass(frozen=True)
class Domain:
    """A domain without a network or a display; what it says on its serial port is in *serial*.

    Emulated unless *hypervisor* is "kvm": a boot sector takes a second either way, and
    emulation works everywhere.
    """

    name: str
    disks: tuple[Disk, ...]
    serial: Path | None = None
    memory_mib: int = 64
    hypervisor: str = "qemu"
    # More elements for <os> and <devices>.
    boot: str = ""
    devices: str = ""

    @property
    def xml(self) -> str:
        disks = "".join(
            disk.xml(f"{'sd' if disk.device == 'cdrom' else 'vd'}{chr(ord('a') + number)}")
            for number, disk in enumerate(self.disks)
        )
        serial = (
            f"<serial type='file'><source path={quoteattr(str(self.serial))}/></serial>"
            if self.serial
            else ""
        )
        return (
            f"<domain type='{self.hypervisor}'><name>{escape(self.name)}</name>"
            f"<memory unit='MiB'>{self.memory_mib}</memory>"
            "<os><type arch='x86_64' machine='q35'>hvm</type>"
            f"{self.boot or BOOT_ORDER}</os>"
            "<features><acpi/></features>"
            f"<devices>{disks}{self.devices}{serial}<controller type='usb' model='none'/>"
            "<memballoon model='none'/></devices></domain>"
        )

    def serial_text(self) -> str:
        """What it has said so far."""
        if self.serial is None or not self.serial.exists():
            return ""
        return self.serial.read_text(errors="replace")


def overlay_command(
    path: Path, backing: Path, *, backing_format: str = "qcow2", virtual_size: int | None = None
) -> list[str]:
    """qemu-img's for a qcow2 overlay whose backing file is named *backing*.

    With *virtual_size* it does not open the backing file. Without, it does, to learn the
    size, and a qcow2 image is then read beyond its header: to a template pool that is a
    reader like any other.
    """
    known = ["-u", str(virtual_size)] if virtual_size is not None else []
    words = ["-f", "qcow2", "-F", backing_format, "-b", str(backing), *known[:1], str(path)]
    return ["qemu-img", "create", *words, *known[1:]]


def make_overlay(
    path: Path, backing: Path, *, backing_format: str = "qcow2", virtual_size: int | None = None
) -> Path:
    """Runs that; *path* itself."""
    command = overlay_command(
        path, backing, backing_format=backing_format, virtual_size=virtual_size
    )
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=OVERLAY_SECONDS)
    return path
