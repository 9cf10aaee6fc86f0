"""Sizes and parents of images, where oslo.utils' inspector does not look.

It takes a VMDK or VHD that names a parent for safe, has no VHDX size before it has read
megabytes, and refuses qcow2 with extended L2 entries; a qcow2 header whose sizes
contradict each other passes it, too. Each function here looks at one format, raises
:class:`errors.ImageError` for what is refused, and returns the size of the virtual disk
in bytes, or None where the bytes that tell are not there.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from typing import Final

from ddfs import errors
from ddfs.model import MAX_SIZE, MiB

# A function (offset, length) -> bytes; short or empty where the bytes are not at hand.
ReadAt = Callable[[int, int], bytes]

_FLATTEN: Final = "publish it as one file (qemu-img convert makes one)"

# QCOW_MAX_L1_SIZE in QEMU's block/qcow2.h: it opens no larger table.
_QCOW2_MAX_L1_BYTES: Final = 32 * MiB
_QCOW2_KNOWN_FEATURES: Final = 0b11111  # up to extended L2 entries; qcow2.rst
_QCOW2_DATA_FILE: Final = 1 << 2
_QCOW2_EXTENDED_L2: Final = 1 << 4

# vmdk.c reads at most this much of a descriptor.
_VMDK_MAX_DESCRIPTOR: Final = MiB

# Microsoft's "Virtual Hard Disk Image Format Specification", footer, field Disk Type.
_VHD_FOOTER_LENGTH: Final = 512
_VHD_TYPES: Final = {2: "fixed", 3: "dynamic", 4: "differencing"}

# MS-VHDX sections 2.2.3 (region table) and 2.6 (metadata).
_VHDX_REGION_TABLE: Final = 192 * 1024
_VHDX_TABLE_LENGTH: Final = 64 * 1024
_VHDX_MAX_ENTRIES: Final = 2047
_VHDX_METADATA: Final = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_FILE_PARAMETERS: Final = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VHDX_VIRTUAL_SIZE: Final = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_VHDX_HAS_PARENT: Final = 1 << 1
_VHDX_MAX_SIZE: Final = 64 * 1024**4


def qcow2_has_known_features(head: bytes) -> bool:
    """Whether QEMU knows every incompatible feature that a version 3 *head* asks for."""
    if len(head) < 80 or head[4:8] != b"\0\0\0\x03":
        return False
    (features,) = struct.unpack_from(">Q", head, 72)
    return not features & ~_QCOW2_KNOWN_FEATURES & (2**64 - 1)


def qcow2(read_at: ReadAt, size: int) -> int | None:
    """The virtual size of a qcow2 image of *size* bytes in all."""
    head = read_at(0, 104)
    if len(head) < 72:
        return None
    version, backing = struct.unpack_from(">IQ", head, 4)
    cluster_bits, virtual_size = struct.unpack_from(">IQ", head, 20)
    l1_entries, l1_offset = struct.unpack_from(">IQ", head, 36)
    features = struct.unpack_from(">Q", head, 72)[0] if version == 3 and len(head) >= 80 else 0
    if backing:
        raise errors.ImageError(f"it has a backing file; {_FLATTEN}")
    if features & _QCOW2_DATA_FILE:
        raise errors.ImageError(f"it has an external data file; {_FLATTEN}")
    if not 9 <= cluster_bits <= 21:
        raise errors.ImageError(f"its clusters of 2^{cluster_bits} bytes are impossible")
    cluster = 1 << cluster_bits
    entries_in_l2 = cluster // (16 if features & _QCOW2_EXTENDED_L2 else 8)
    needed = -(-virtual_size // (cluster * entries_in_l2))
    if virtual_size > MAX_SIZE or l1_entries < needed or l1_entries * 8 > _QCOW2_MAX_L1_BYTES:
        raise errors.ImageError(
            f"its size of {virtual_size} bytes does not fit its table of {l1_entries} entries"
        )
    if l1_offset + l1_entries * 8 > size:
        raise errors.ImageError(f"it is cut off: its table lies behind its end at {size} bytes")
    return int(virtual_size)


def vmdk(read_at: ReadAt, size: int) -> int | None:
    """The virtual size of a VMDK in one sparse file."""
    head = read_at(0, 512)
    if not head.startswith(b"KDMV"):
        raise errors.ImageError(f"it is a VMDK descriptor that names other files; {_FLATTEN}")
    if len(head) < 64:
        return None
    sectors, _, start, length = struct.unpack_from("<QQQQ", head, 12)
    if not 0 < sectors <= MAX_SIZE // 512:
        raise errors.ImageError(f"its size of {sectors} sectors is impossible")
    if (start + length) * 512 > size:
        raise errors.ImageError(f"it is cut off: its descriptor ends behind {size} bytes")
    descriptor = read_at(start * 512, min(length * 512, _VMDK_MAX_DESCRIPTOR))
    # vmdk_parent_open looks for this word anywhere in the text.
    if b"parentfilenamehint" in descriptor.lower():
        raise errors.ImageError(f"it has a parent image; {_FLATTEN}")
    return int(sectors) * 512


def is_fixed_vhd(footer: bytes) -> bool:
    """Whether *footer*, the last 512 bytes of a file, are those of a fixed VHD."""
    return footer.startswith(b"conectix") and footer[60:64] == b"\0\0\0\x02"


def vhd(footer: bytes, size: int) -> int | None:
    """The virtual size of a VHD from its *footer*, or the copy of that in its head."""
    if len(footer) < _VHD_FOOTER_LENGTH:
        return None
    (virtual_size,) = struct.unpack_from(">Q", footer, 48)
    (number,) = struct.unpack_from(">I", footer, 60)
    kind = _VHD_TYPES.get(number)
    if kind is None:
        raise errors.ImageError(f"it is a VHD of unknown type {number}")
    if kind == "differencing":
        raise errors.ImageError(f"it has a parent image; {_FLATTEN}")
    if virtual_size > MAX_SIZE:
        raise errors.ImageError(f"its size of {virtual_size} bytes is impossible")
    if kind == "fixed" and virtual_size + _VHD_FOOTER_LENGTH > size:
        raise errors.ImageError(f"it is cut off: {size} bytes hold no disk of {virtual_size}")
    return int(virtual_size)


def vhdx(read_at: ReadAt) -> int | None:
    """The virtual size of a VHDX."""
    metadata = _vhdx_metadata(read_at)
    if metadata is None:
        return None
    table = read_at(metadata, _VHDX_TABLE_LENGTH)
    if len(table) < 32:
        return None
    if not table.startswith(b"metadata"):
        raise errors.ImageError("its metadata is not where its header says")
    (count,) = struct.unpack_from("<H", table, 10)
    items = _vhdx_entries(table, count)
    parameters = _vhdx_item(read_at, metadata, items.get(_VHDX_FILE_PARAMETERS), 8)
    stated = _vhdx_item(read_at, metadata, items.get(_VHDX_VIRTUAL_SIZE), 8)
    if parameters is None or stated is None:
        return None
    if struct.unpack("<II", parameters)[1] & _VHDX_HAS_PARENT:
        raise errors.ImageError(f"it has a parent image; {_FLATTEN}")
    (virtual_size,) = struct.unpack("<Q", stated)
    if virtual_size > _VHDX_MAX_SIZE:
        raise errors.ImageError(f"its size of {virtual_size} bytes is impossible")
    return int(virtual_size)


def _vhdx_metadata(read_at: ReadAt) -> int | None:
    table = read_at(_VHDX_REGION_TABLE, _VHDX_TABLE_LENGTH)
    if len(table) < _VHDX_TABLE_LENGTH:
        return None
    signature, _, count = struct.unpack_from("<4sII", table)
    if signature != b"regi" or count > _VHDX_MAX_ENTRIES:
        raise errors.ImageError("its region table is broken")
    # The region table's header has 16 bytes, that of the metadata table 32.
    entry = _vhdx_entries(bytes(16) + table, count).get(_VHDX_METADATA)
    return struct.unpack_from("<Q", entry, 16)[0] if entry is not None else None


def _vhdx_entries(table: bytes, count: int) -> dict[bytes, bytes]:
    """The entries of 32 bytes behind a header of 32 bytes, by their GUID."""
    if count > _VHDX_MAX_ENTRIES:
        raise errors.ImageError("its metadata table is broken")
    ends = (32 * (number + 2) for number in range(count))
    entries = (table[end - 32 : end] for end in ends if end <= len(table))
    return {entry[:16]: entry for entry in entries}


def _vhdx_item(read_at: ReadAt, metadata: int, entry: bytes | None, length: int) -> bytes | None:
    if entry is None:
        raise errors.ImageError("its metadata has no size")
    (offset,) = struct.unpack_from("<I", entry, 16)
    item = read_at(metadata + offset, length)
    return item if len(item) == length else None
