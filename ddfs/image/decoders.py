"""Bytes out of packed bytes, in bounded memory: gzip, bzip2, xz, zstd and zip.

RFC 1952 (gzip), RFC 8878 (zstd), the .xz file format 1.2 and PKWARE's APPNOTE 6.3 (zip) say
what is in them. Whatever a file is made of, no call here holds more than its decoder's
window and a megabyte, and nothing that follows the packed data is passed over in silence.
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol, cast

from ddfs import errors
from ddfs.model import KiB, MiB, PackingKind

# A function (offset, length) -> bytes, short at the end of the file.
ReadAt = Callable[[int, int], bytes]

# What comes out at once.
CHUNK_BYTES: Final = 1 * MiB

# What goes in at once. Small, because what follows the end of one stream is copied for the
# next one, and a file may be made of streams of twenty bytes.
_BLOCK_BYTES: Final = 64 * KiB

# `xz -9` takes 65 MiB to unpack, `zstd --long` a window of 128 MiB. A header can ask for
# 4 GiB (xz) or 2 TiB (zstd), which would end the daemon.
XZ_MEMORY_BYTES: Final = 160 * MiB
ZSTD_WINDOW_LOG: Final = 27

# Some 20,000 entries; zipfile makes an object of a kilobyte for each.
MAX_ZIP_DIRECTORY: Final = 1 * MiB

_MAGIC: Final = {
    PackingKind.GZIP: b"\x1f\x8b\x08",
    PackingKind.BZIP2: b"BZh",
    PackingKind.XZ: b"\xfd7zXZ\0",
    PackingKind.ZSTD: b"\x28\xb5\x2f\xfd",
    PackingKind.ZIP: b"PK\x03\x04",
}
_MAGIC_LENGTH: Final = 6

# RFC 8878 section 3.1.2: its first byte is any of sixteen.
_SKIPPABLE: Final = b"\x2a\x4d\x18"

# APPNOTE 4.4.4, bit 0.
_ENCRYPTED: Final = 1
_MAX_NAMES_SHOWN: Final = 5

_NAMES: Final = {
    PackingKind.GZIP: "gzip",
    PackingKind.BZIP2: "bzip2",
    PackingKind.XZ: "xz",
    PackingKind.ZSTD: "zstd",
    PackingKind.ZIP: "zip",
}


class _Decoder(Protocol):
    """What bz2, lzma and zstd have in common."""

    def decompress(self, data: bytes, max_length: int) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Gzip:
    """zlib's decoder in that form."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self.needs_input = True

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.needs_input = not self._inner.unconsumed_tail and len(out) < max_length
        return out

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


def starts_like(kind: PackingKind, start: bytes) -> bool:
    """Whether a file that starts so is packed in that way."""
    if kind is PackingKind.ZSTD and start[1:4] == _SKIPPABLE and start[0] >> 4 == 5:
        return True
    return start.startswith(_MAGIC[kind])


def shown(kind: PackingKind) -> str:
    """Its name, for people."""
    return _NAMES[kind]


def unpacked(kind: PackingKind, member: str | None, size: int, read_at: ReadAt) -> Iterator[bytes]:
    """What comes out of the packed file of *size* bytes, in parts of at most a mebibyte.

    Several streams one behind the other are one file, as their tools have it. Raises
    :class:`errors.ImageError` for what is broken, cut off, encrypted, followed by something
    else, or would take too much memory; whatever *read_at* raises comes through.
    """
    if kind is PackingKind.ZIP:
        return _unzipped(member, size, read_at)
    return _streams(kind, _reader(read_at))


def _reader(read_at: ReadAt) -> Callable[[], bytes]:
    position = 0

    def read() -> bytes:
        nonlocal position
        data = read_at(position, _BLOCK_BYTES)
        position += len(data)
        return data

    return read


def _streams(kind: PackingKind, read: Callable[[], bytes]) -> Iterator[bytes]:
    data = read()
    if not starts_like(kind, data):
        raise errors.ImageError(f"it does not start like a {shown(kind)} file")
    decoder = _decoder(kind)
    while True:
        out = _decode(kind, decoder, data)
        data = b""
        if out:
            yield out
        if decoder.eof:
            data = _next_stream(kind, decoder.unused_data, read)
            if not data:
                return
            decoder = _decoder(kind)
        elif decoder.needs_input:
            data = read()
            if not data:
                raise errors.ImageError(f"its {shown(kind)} data is cut off")


def _decoder(kind: PackingKind) -> _Decoder:
    if kind is PackingKind.GZIP:
        return _Gzip()
    if kind is PackingKind.BZIP2:
        return bz2.BZ2Decompressor()
    if kind is PackingKind.XZ:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)
    from backports import zstd  # slow to import, and rare

    limit = {int(zstd.DecompressionParameter.window_log_max): ZSTD_WINDOW_LOG}
    decoder: _Decoder = zstd.ZstdDecompressor(options=limit)
    return decoder


def _decode(kind: PackingKind, decoder: _Decoder, data: bytes) -> bytes:
    try:
        return decoder.decompress(data, CHUNK_BYTES)
    except Exception as error:  # each decoder has a class of its own, bzip2 OSError
        raise errors.ImageError(f"its {shown(kind)} data is refused: {_brief(error)}") from error


def _next_stream(kind: PackingKind, rest: bytes, read: Callable[[], bytes]) -> bytes:
    """The bytes of the stream that follows, empty at the end of the file."""
    padding = 0
    while True:
        if kind in (PackingKind.GZIP, PackingKind.XZ):
            # gzip's is from tapes; that of xz comes in fours (section 2.2).
            stripped = rest.lstrip(b"\0")
            padding += len(rest) - len(stripped)
            rest = stripped
        more = read() if len(rest) < _MAGIC_LENGTH else b""
        if not more:
            break
        rest += more
    is_right = not rest or (starts_like(kind, rest) and not (padding and kind is PackingKind.GZIP))
    if not is_right or (kind is PackingKind.XZ and padding % 4):
        raise errors.ImageError(f"something that is not {shown(kind)} follows its data")
    return rest


def _unzipped(member: str | None, size: int, read_at: ReadAt) -> Iterator[bytes]:
    with open_zip(size, read_at) as archive:
        entry = zip_entry(archive, member)
        try:
            with archive.open(entry) as opened:
                # Not read(): it asks for all that fills the answer.
                file = cast("zipfile.ZipExtFile", opened)
                while chunk := file.read1(_BLOCK_BYTES):
                    yield chunk
        except _ZIP_ERRORS as error:
            raise errors.ImageError(f"its zip data is broken: {_brief(error)}") from error


class _SeekError(OSError):
    """An offset that cannot be. zipfile expects OSError; that of a disk is another matter."""


# What zipfile raises for archives that are not as they should be.
_ZIP_ERRORS: Final = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError),
    *(ValueError, OverflowError, LookupError, struct.error, _SeekError),
)


def open_zip(size: int, read_at: ReadAt) -> zipfile.ZipFile:
    """The archive of *size* bytes. Raises :class:`errors.ImageError`."""
    try:
        return zipfile.ZipFile(_ReadAtFile(size, read_at))
    except _ZIP_ERRORS as error:
        raise errors.ImageError(f"it is no usable zip archive: {_brief(error)}") from error


def zip_entry(archive: zipfile.ZipFile, member: str | None) -> zipfile.ZipInfo:
    """The file called *member*, or the only one. Its name is compared and nothing else."""
    # is_dir() of an entry without a name ends in an IndexError (Python 3.11's zipfile).
    files = [entry for entry in archive.infolist() if entry.filename and not entry.is_dir()]
    found = files if member is None else [e for e in files if e.filename == member]
    if len(found) != 1:
        names = ", ".join(repr(entry.filename[:80]) for entry in files[:_MAX_NAMES_SHOWN])
        if member is not None:
            raise errors.ImageError(f"the zip archive has no file {member!r}; it has {names}")
        raise errors.ImageError(
            f"the zip archive has {len(files)} files ({names}); choose one with --file"
            if files
            else "the zip archive has no file"
        )
    [entry] = found
    if entry.flag_bits & _ENCRYPTED:
        raise errors.ImageError("the file in the zip archive is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise errors.ImageError(
            f"the file in the zip archive is packed in an unusual way (method "
            f"{entry.compress_type}); only stored and deflated files are unpacked"
        )
    return entry


class _ReadAtFile(io.RawIOBase):
    """What zipfile reads from. One read takes little: its size comes from the archive."""

    def __init__(self, size: int, read_at: ReadAt) -> None:
        self._size = size
        self._read_at = read_at
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            # As of a file; zipfile looks for the end record of tiny files so.
            raise _SeekError("an offset before the start of the file")
        self._position = base + offset
        return self._position

    def read(self, length: int = -1, /) -> bytes:
        end = self._size if length < 0 else min(self._size, self._position + length)
        wanted = max(0, end - self._position)
        if wanted > MAX_ZIP_DIRECTORY:
            raise errors.ImageError("its zip directory is too large")
        data = self._read_at(self._position, wanted) if wanted else b""
        self._position += len(data)
        return data


def _brief(error: Exception) -> str:
    """One line of somebody else's error."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
