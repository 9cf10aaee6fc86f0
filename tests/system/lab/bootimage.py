"""A disk that proves it was booted: its boot sector prints a line to the first serial port.

The code is assembled by hand below: 16-bit real mode, no BIOS call but the one that loads it.
"""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path
from typing import Final

SECTOR: Final = 512
MIB: Final = 1024 * 1024

# The BIOS puts the first sector there.
LOAD_ADDRESS: Final = 0x7C00

BOOT_SIGNATURE: Final = b"\x55\xaa"

_CODE: Final = bytes.fromhex(
    "fa"  # 00        cli
    "31c0"  # 01        xor  ax, ax
    "8ed8"  # 03        mov  ds, ax
    "be0000"  # 05        mov  si, text         patched below
    "fc"  # 08        cld
    "ac"  # 09 next:  lodsb
    "84c0"  # 0a        test al, al
    "7412"  # 0c        jz   halt
    "88c4"  # 0e        mov  ah, al
    "bafd03"  # 10        mov  dx, 0x3fd        COM1's line status
    "ec"  # 13 wait:  in   al, dx
    "a820"  # 14        test al, 0x20         is its transmit register empty?
    "74fb"  # 16        jz   wait
    "88e0"  # 18        mov  al, ah
    "baf803"  # 1a        mov  dx, 0x3f8        COM1's data
    "ee"  # 1d        out  dx, al
    "ebe9"  # 1e        jmp  next
    "f4"  # 20 halt:  hlt
    "ebfd"  # 21        jmp  halt
)
_TEXT_OPERAND: Final = 0x06

# A partition table would begin there; the text stays in front of it.
_TEXT_END: Final = 446


def boot_sector(line: str) -> bytes:
    """512 bytes that print *line* and stop the processor."""
    text = line.encode("ascii") + b"\r\n\0"
    code = bytearray(_CODE)
    struct.pack_into("<H", code, _TEXT_OPERAND, LOAD_ADDRESS + len(code))
    if len(code) + len(text) > _TEXT_END:
        raise ValueError(f"too long for a boot sector: {line!r}")
    return bytes(code + text).ljust(SECTOR - len(BOOT_SIGNATURE), b"\0") + BOOT_SIGNATURE


def write_raw(path: Path, line: str, size: int, *, seed: int = 1) -> Path:
    """A raw disk of *size* bytes (a multiple of a MiB) that prints *line* and is otherwise
    full of bytes that nothing can compress, the same for the same *seed*.
    """
    numbers = random.Random(seed)
    with path.open("wb") as disk:
        for _ in range(size // MIB):
            disk.write(numbers.randbytes(MIB))
        disk.seek(0)
        disk.write(boot_sector(line))
    return path


def write_qcow2(path: Path, line: str, size: int, *, seed: int = 1) -> Path:
    """The same as a qcow2 image."""
    raw = write_raw(path.with_name(f"{path.name}.raw"), line, size, seed=seed)
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path]
    subprocess.run(command, check=True, capture_output=True)
    raw.unlink()
    return path
