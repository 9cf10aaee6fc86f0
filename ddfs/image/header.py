"""What other files an image's header names: its backing file and its external data file.

The layouts are from QEMU's docs/interop/qcow2.rst and block/vmdk.c. Nothing here opens a
file; :func:`references` gets a function that reads. Standard library only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

# What is read first: every field and every header extension of real images lies in it.
HEADER_LENGTH: Final = 64 * 1024

# qcow2.rst: "must not be longer than 1023 bytes".
MAX_NAME_BYTES: Final = 1023

# block/vmdk.c reads at most 20 sectors of descriptor; the text is behind the header.
_VMDK_DESCRIPTOR_LENGTH: Final = 20 * 512

_QCOW_MAGIC: Final = b"QFI\xfb"
_VMDK_MAGIC: Final = b"KDMV"
_VMDK_TEXT: Final = b"# Disk DescriptorFile"
_EXTENSION_BACKING_FORMAT: Final = 0xE2792ACA
_EXTENSION_DATA_FILE: Final = 0x44415441
_INCOMPATIBLE_DATA_FILE: Final = 1 << 2

# A function (offset, length) -> bytes, short at the end of the file.
ReadAt = Callable[[int, int], bytes]


class ChainError(ValueError):
    """A domain or a disk chain that cannot be made out; the text is one line."""


class References(NamedTuple):
    """The names in one header, as they stand there."""

    format: str
    backing: str | None = None
    backing_format: str | None = None
    data: str | None = None


def references(read_at: ReadAt, declared_format: str | None) -> References:
    """The files that an image of *declared_format* names.

    None as the format means a backing file without a declared one, which QEMU probes.
    A format that names no files, ``raw`` above all, is not looked into: a guest can write
    a qcow2 header into its raw disk, and must not gain anything by it.

    Raises :class:`ChainError` for a header that contradicts itself.
    """
    if declared_format not in (None, "qcow2", "qcow", "vmdk"):
        return References(declared_format or "raw")
    head = read_at(0, HEADER_LENGTH)
    if head.startswith(_QCOW_MAGIC) and declared_format != "vmdk":
        return _qcow(head, read_at)
    if head.startswith((_VMDK_MAGIC, _VMDK_TEXT)) and declared_format in (None, "vmdk"):
        return _vmdk(head)
    return References(declared_format or "raw")


def _qcow(head: bytes, read_at: ReadAt) -> References:
    if len(head) < 24:
        raise ChainError("the qcow2 header is cut off")
    version, offset, length = struct.unpack_from(">IQI", head, 4)
    if version == 1:
        return References("qcow", backing=_name(read_at, offset, length))
    if version not in (2, 3):
        raise ChainError(f"unknown qcow2 version {version}")
    fixed, incompatible = 72, 0
    if version == 3:
        if len(head) < 104:
            raise ChainError("the qcow2 header is cut off")
        (incompatible,) = struct.unpack_from(">Q", head, 72)
        (fixed,) = struct.unpack_from(">I", head, 100)
    extensions = _extensions(head, fixed)
    data = None
    if incompatible & _INCOMPATIBLE_DATA_FILE:
        data = _text(extensions.get(_EXTENSION_DATA_FILE, b"")) or None
    backing_format = _text(extensions.get(_EXTENSION_BACKING_FORMAT, b"")) or None
    return References("qcow2", _name(read_at, offset, length), backing_format, data)


def _name(read_at: ReadAt, offset: int, length: int) -> str | None:
    if offset == 0 or length == 0:
        return None
    if length > MAX_NAME_BYTES or offset > 2**62:
        raise ChainError(f"the name of the backing file cannot be {length} bytes at {offset}")
    raw = read_at(offset, length)
    if len(raw) < length:
        raise ChainError("the name of the backing file lies behind the end of the image")
    return _text(raw) or None


def _extensions(head: bytes, start: int) -> dict[int, bytes]:
    """Header extensions by type; what lies outside *head* is left out."""
    found: dict[int, bytes] = {}
    position = start
    while position + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, position)
        if kind == 0:
            break
        position += 8
        if position + length > len(head):
            break
        found.setdefault(kind, head[position : position + length])
        position += (length + 7) // 8 * 8
    return found


def _vmdk(head: bytes) -> References:
    """VMDK names its parent in the descriptor, a text (vmdk_parent_open in block/vmdk.c)."""
    start = 0 if head.startswith(_VMDK_TEXT) else 512
    descriptor = head[start : start + _VMDK_DESCRIPTOR_LENGTH].split(b"\0", 1)[0]
    _, found, rest = descriptor.partition(b'parentFileNameHint="')
    name, closed, _ = rest.partition(b'"')
    if not found:
        return References("vmdk")
    if not closed or len(name) > MAX_NAME_BYTES:
        raise ChainError("the name of the VMDK's parent does not end")
    return References("vmdk", backing=_text(name) or None)


def _text(raw: bytes) -> str:
    """A name as QEMU takes it: a C string."""
    return os.fsdecode(raw.split(b"\0", 1)[0])
