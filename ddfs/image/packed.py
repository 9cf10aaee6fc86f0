"""A packed image before it is fetched: what the start, and the size, of what comes out are.

Both come from small parts of the packed file, which the caller brings. None of it is the
truth: that is what :mod:`ddfs.image.unpack` finds.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from ddfs import errors
from ddfs.image import decoders
from ddfs.image.decoders import ReadAt
from ddfs.model import HEAD_LENGTH, MAX_SIZE, KiB, MiB, Packing, PackingKind

# A bzip2 block holds 900 kB and gives nothing before its end; more than this of a packed
# file is not read to see what it starts with.
MAX_START: Final = 1 * MiB + 256 * KiB

# The .xz file format 1.2: footer and header have 12 bytes. An index has some 8 bytes for a
# block of 24 MiB (`xz -T0`).
_XZ_FRAME: Final = 12
_XZ_MAX_INDEX: Final = 1 * MiB
_XZ_MAX_STREAMS: Final = 16
_XZ_MAX_PADDING: Final = 4 * KiB

# RFC 8878 section 3.1.1.1: the longest header of a frame.
_ZSTD_HEADER: Final = 18

# In a tar archive (POSIX.1-2001, pax): it would pass for a raw disk.
_TAR_AT: Final = 257
_TAR: Final = b"ustar"


@dataclass(frozen=True, slots=True)
class PackedFacts:
    """``head``: the first HEAD_LENGTH bytes of what comes out, or all of it; ``size``: how
    many bytes that will be, None where the packed file does not say.
    """

    head: bytes
    size: int | None


def look(packing: Packing, size: int, read_at: ReadAt) -> PackedFacts:
    """What a packed file of *size* bytes says about what comes out of it.

    Reads its start and, where an index is there, its end. Raises
    :class:`errors.ImageError` for what is not packed as *packing* has it, is broken, or is
    a kind of archive that is not unpacked; what *read_at* raises comes through.
    """
    try:
        stated = _stated_size(packing, size, read_at)
        head, is_all = _head(packing, size, read_at)
    except errors.ImageError as error:
        raise errors.ImageError(f"the image is refused: {error}") from error
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        raise errors.ImageError("the image is refused: a tar archive is in it, and no image")
    if is_all:
        stated = len(head)
    return PackedFacts(head, stated)


def _head(packing: Packing, size: int, read_at: ReadAt) -> tuple[bytes, bool]:
    """The first bytes that come out, and whether they are all."""

    def read_start(offset: int, length: int) -> bytes:
        if packing.kind is not PackingKind.ZIP and offset >= MAX_START:
            raise errors.ImageError(f"its first {MAX_START // KiB} KiB give nothing to look at")
        return read_at(offset, length)

    head = bytearray()
    for part in decoders.unpacked(packing.kind, packing.member, size, read_start):
        head += part
        if len(head) >= HEAD_LENGTH:
            return bytes(head[:HEAD_LENGTH]), False
    return bytes(head), True


def _stated_size(packing: Packing, size: int, read_at: ReadAt) -> int | None:
    if packing.kind is PackingKind.XZ:
        return _xz_size(size, read_at)
    if packing.kind is PackingKind.ZSTD:
        return _zstd_size(read_at(0, _ZSTD_HEADER))
    if packing.kind is PackingKind.ZIP:
        with decoders.open_zip(size, read_at) as archive:
            stated = decoders.zip_entry(archive, packing.member).file_size
        if stated > MAX_SIZE:
            raise errors.ImageError(f"a file of {stated} bytes cannot be in it")
        return stated
    # gzip has the size modulo 2^32, of its last stream alone.
    return None


def _zstd_size(start: bytes) -> int | None:
    """Of the first frame: that there is another one shows when it is unpacked."""
    from backports import zstd

    if start.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            stated: int | None = zstd.get_frame_info(start).decompressed_size
        except zstd.ZstdError:
            return None
        return stated if stated is not None and stated <= MAX_SIZE else None
    return None


def _xz_size(size: int, read_at: ReadAt) -> int | None:
    """From the indexes at the ends of its streams, the last one first."""
    total, end = 0, size
    for _ in range(_XZ_MAX_STREAMS):
        end = _without_padding(end, read_at)
        stream = _xz_stream(end, read_at)
        if stream is None:
            return None
        length, uncompressed = stream
        total, end = total + uncompressed, end - length
        if end == 0:
            return total if total <= MAX_SIZE else None
        if end < 0:
            return None
    return None


def _without_padding(end: int, read_at: ReadAt) -> int:
    start = max(0, end - _XZ_MAX_PADDING)
    return start + len(read_at(start, end - start).rstrip(b"\0"))  # a footer ends in "YZ"


def _xz_stream(end: int, read_at: ReadAt) -> tuple[int, int] | None:
    """Length of the stream that ends at *end*, and of what is in it; None if it is none."""
    if end < 2 * _XZ_FRAME:
        return None
    footer = read_at(end - _XZ_FRAME, _XZ_FRAME)
    if len(footer) < _XZ_FRAME or footer[10:] != b"YZ":
        return None
    crc, backward = struct.unpack_from("<II", footer)
    length = (backward + 1) * 4
    if crc != zlib.crc32(footer[4:10]) or length > min(_XZ_MAX_INDEX, end - 2 * _XZ_FRAME):
        return None
    index = read_at(end - _XZ_FRAME - length, length)
    sizes = _xz_index(index) if len(index) == length else None
    if sizes is None:
        return None
    packed, uncompressed = sizes
    return packed + length + 2 * _XZ_FRAME, uncompressed


def _xz_index(index: bytes) -> tuple[int, int] | None:
    """Section 4: the bytes of all blocks, and of what is in them."""
    if index[0] != 0 or struct.unpack("<I", index[-4:])[0] != zlib.crc32(index[:-4]):
        return None
    try:
        count, at = _xz_number(index, 1)
        packed = uncompressed = 0
        for _ in range(count):
            unpadded, at = _xz_number(index, at)
            inside, at = _xz_number(index, at)
            packed += (unpadded + 3) // 4 * 4
            uncompressed += inside
    except IndexError:
        return None
    return packed, uncompressed


def _xz_number(data: bytes, at: int) -> tuple[int, int]:
    """Section 1.2: seven bits a byte, nine bytes at most; the number and what follows it."""
    number = 0
    for shift in range(0, 63, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return number, at
    raise IndexError(at)
