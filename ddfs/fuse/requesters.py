"""Who opens a file: QEMU, libvirt, or anybody.

The kernel tells the thread that asks, once, at open. Its executable decides, and not its
name (``comm``), which every program sets as it likes.
"""

from __future__ import annotations

import enum
import os
import re
from typing import Final


class Requester(enum.Enum):
    """Whose patience differs."""

    QEMU = "qemu"
    LIBVIRT = "libvirt"
    ANYBODY = "anybody"


# NixOS runs ".qemu-system-x86_64-wrapped" through a wrapper of the plain name.
_QEMU: Final = re.compile(r"\.?(qemu-system-[^/]+|qemu-kvm|kvm)(-wrapped)?")

# virt-aa-helper reads backing chains for AppArmor while libvirt waits for it and holds the
# domain, so it has libvirt's patience.
_LIBVIRT: Final = re.compile(r"\.?(libvirtd|virtqemud|virtstoraged|virt-aa-helper)(-wrapped)?")

# What the kernel puts behind the path of a program that was replaced while it runs: every
# QEMU after a package upgrade.
_DELETED: Final = " (deleted)"


def classify(executable: str) -> Requester:
    """From the path of the program, as ``/proc/PID/exe`` has it."""
    name = executable.removesuffix(_DELETED).rpartition("/")[2]
    if _QEMU.fullmatch(name):
        return Requester.QEMU
    if _LIBVIRT.fullmatch(name):
        return Requester.LIBVIRT
    return Requester.ANYBODY


def identify(pid: int) -> Requester:
    """Who the process or thread *pid* is.

    ANYBODY when that cannot be seen: 0 stands for another PID namespace, kernel workers
    have no program, and a process may be gone by now. Reads no file, so it does not block.
    """
    try:
        return classify(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return Requester.ANYBODY
