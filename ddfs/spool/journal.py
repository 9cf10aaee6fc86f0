"""What of a partial file is on disk, and by whose word.

An append-only file beside the partial file. Every record has a length and a CRC-32, so that
a torn tail is seen and dropped; the header says which content in which grid the records
speak of, so that pieces of two manifests are never mixed. The data of a piece is on disk
before its record is (`append` is called after fdatasync of the data and returns after
fdatasync of the journal), therefore a record that can be read is true, after a power loss
as well.

With the document's piece hashes a record means *verified*. Without them it means
*received*: it carries our own SHA-256 and the mirror that sent the piece, so that a fetch
resumes and a liar is found.

A process that is killed leaves more than that: what it had handed to the kernel. Without piece
hashes nobody could tell that from rubbish, so that such pieces are *noted* as they come: their
records count as long as the kernel lives that has the data, which its boot id says, and for
nothing after a power loss.

Layout: records of ``<kind:u8> <length:u32> <crc:u32 of kind and payload> <payload>``,
little-endian. Kinds: H header (JSON), M mirror (its address; numbered by order), P piece
(``<piece:u64> <mirror:u16> <sha256, 0 or 32 bytes>``), F forgotten (``<piece:u64>``), B boot
(the id of the kernel that the notes behind it hold for, those before one of another are void), N
noted (as P).
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from ddfs import errors
from ddfs.fetch.transfer import PieceRecord
from ddfs.model import Grid

_FRAME: Final = struct.Struct("<BII")
_PIECE: Final = struct.Struct("<QH")
_NUMBER: Final = struct.Struct("<Q")

_HEADER, _MIRROR, _PIECE_KIND, _FORGOTTEN, _BOOT, _NOTED = b"HMPFBN"

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

# A mirror's address or a header is far below; a longer record is damage, not data.
_MAX_PAYLOAD: Final = 64 * 1024

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """What the records speak of. ``data_inode`` ties them to one partial file."""

    content_id: str
    size: int
    piece_length: int
    has_document_pieces: bool
    data_inode: int


class Journal:
    """An open journal. Not thread-safe: its owner calls one method at a time, in a thread."""

    def __init__(self, path: Path, fd: int, header: JournalHeader) -> None:
        self.path = path
        self.header = header
        self._fd = fd
        # Where the last whole record ends. What a full disk cut off must not stay there, since
        # nothing behind it could be read any more.
        self._end = 0
        self._is_torn = False
        self._mirrors: dict[str, int] = {}
        self._pieces: dict[int, tuple[int, bytes]] = {}
        # What this kernel has of an earlier process, and no disk yet.
        self._noted: dict[int, tuple[int, bytes]] = {}
        self._boot = boot_id()
        # Of whom the next note would be.
        self._noting_for: bytes | None = None

    @classmethod
    def create(cls, path: Path, header: JournalHeader) -> Self:
        """A new journal with nothing in it, durable under its name on return.

        Made under a temporary name: a journal without a whole header never exists.
        """
        temporary = path.with_name(path.name + ".new")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            payload = json.dumps({"version": _VERSION, **asdict(header)}).encode()
            frame = _frame(_HEADER, payload)
            _write_all(fd, frame, 0)
            os.fsync(fd)
            temporary.rename(path)
            sync_directory(path.parent)
        except BaseException:
            os.close(fd)
            raise
        journal = cls(path, fd, header)
        journal._end = len(frame)
        return journal

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """The journal at *path*; None where there is none, or its header is unreadable.

        Whatever follows the first damaged record is cut off: it was never promised.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        journal: Self | None = None
        try:
            journal = cls._load(path, fd)
        finally:
            if journal is None:
                os.close(fd)
        return journal

    @classmethod
    def _load(cls, path: Path, fd: int) -> Self | None:
        data = path.read_bytes()
        records, end = _parse(data)
        if not records or records[0][0] != _HEADER:
            return None
        header = _header_from(records[0][1])
        if header is None:
            return None
        journal = cls(path, fd, header)
        for kind, payload in records[1:]:
            journal._apply(kind, payload)
        if end < len(data):
            os.ftruncate(fd, end)
        journal._end = end
        return journal

    def _apply(self, kind: int, payload: bytes) -> None:
        if kind == _MIRROR:
            self._mirrors.setdefault(payload.decode("utf-8", "replace"), len(self._mirrors))
        elif kind == _PIECE_KIND:
            piece, mirror = _PIECE.unpack_from(payload)
            self._pieces[piece] = (mirror, payload[_PIECE.size :])
            self._noted.pop(piece, None)
        elif kind == _FORGOTTEN:
            piece = _NUMBER.unpack_from(payload)[0]
            self._pieces.pop(piece, None)
            self._noted.pop(piece, None)
        elif kind == _BOOT:
            if payload != self._noting_for:
                self._noted.clear()
            self._noting_for = payload
        elif kind == _NOTED and self._boot and self._noting_for == self._boot:
            piece, mirror = _PIECE.unpack_from(payload)
            self._noted[piece] = (mirror, payload[_PIECE.size :])

    @property
    def grid(self) -> Grid:
        """The pieces that the records count in."""
        return Grid(self.header.size, self.header.piece_length)

    def pieces(self) -> list[PieceRecord]:
        """What is on disk, and what an earlier process noted, in the order of the file."""
        return self._records({**self._pieces, **self._noted})

    def noted(self) -> list[PieceRecord]:
        """What an earlier process noted: in the file, but perhaps not on disk yet."""
        return self._records(self._noted)

    def _records(self, pieces: dict[int, tuple[int, bytes]]) -> list[PieceRecord]:
        urls = list(self._mirrors)
        return [
            PieceRecord(piece, urls[mirror] if mirror < len(urls) else "", digest)
            for piece, (mirror, digest) in sorted(pieces.items())
            if piece < self.grid.count
        ]

    @property
    def bytes_here(self) -> int:
        """Sum of the lengths of :meth:`pieces`."""
        grid = self.grid
        here = self._pieces.keys() | self._noted.keys()
        return sum(len(grid.bytes_of(piece)) for piece in here if piece < grid.count)

    def append(self, records: Sequence[PieceRecord]) -> None:
        """Say that *records* are on disk, which they must be. Durable on return; after an
        error the journal is as before, and the next call goes on from there.
        """
        self._append(self._said(_PIECE_KIND, records))

    def note(self, records: Sequence[PieceRecord]) -> None:
        """Say that *records* are in the file, as this kernel has it. Not durable; an error as in
        :meth:`append`.
        """
        if not self._boot or not records:
            return
        said = self._said(_NOTED, records)
        if self._noting_for != self._boot:
            said.insert(0, (_BOOT, self._boot))
        self._append(said, is_durable=False)

    def void_notes(self) -> None:
        """Say that nothing noted so far is to be trusted. Durable on return; an error as in
        :meth:`append`.
        """
        if self._noting_for:
            self._append([(_BOOT, b"")])

    def _said(self, kind: int, records: Sequence[PieceRecord]) -> list[tuple[int, bytes]]:
        mirrors = dict(self._mirrors)
        said: list[tuple[int, bytes]] = []
        for record in records:
            if record.mirror_url not in mirrors:
                mirrors[record.mirror_url] = len(mirrors)
                said.append((_MIRROR, record.mirror_url.encode()))
            payload = _PIECE.pack(record.piece, mirrors[record.mirror_url]) + record.sha256
            said.append((kind, payload))
        return said

    def forget(self, pieces: Iterable[int]) -> None:
        """Say that *pieces* are not to be trusted any more. Durable on return; an error as in
        :meth:`append`.
        """
        self._append([(_FORGOTTEN, _NUMBER.pack(piece)) for piece in pieces])

    def _append(self, said: Sequence[tuple[int, bytes]], *, is_durable: bool = True) -> None:
        if not said:
            return
        data = b"".join(_frame(kind, payload) for kind, payload in said)
        if self._is_torn:
            os.ftruncate(self._fd, self._end)
        self._is_torn = True
        try:
            _write_all(self._fd, data, self._end)
            if is_durable:
                os.fdatasync(self._fd)
        except OSError:
            # At once, since the next daemon may be the next to look.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise
        self._is_torn = False
        self._end += len(data)
        for kind, payload in said:
            if kind != _NOTED:  # this process knows, and has it committed soon
                self._apply(kind, payload)

    def close(self) -> None:
        """Close the file; twice is no mistake."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def boot_id() -> bytes:
    """Names the life of the running kernel; empty where nobody knows it."""
    try:
        return _BOOT_ID.read_bytes().strip()
    except OSError:
        return b""


def sync_directory(path: Path) -> None:
    """Make renames and unlinks in *path* durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _frame(kind: int, payload: bytes) -> bytes:
    if len(payload) > _MAX_PAYLOAD:
        raise errors.StorageError(f"a journal record of {len(payload)} bytes is too long")
    return _FRAME.pack(kind, len(payload), _crc(kind, payload)) + payload


def _crc(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(bytes([kind])))


def _parse(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """The whole records at the front of *data*, and where they end."""
    records = []
    position = 0
    while position + _FRAME.size <= len(data):
        kind, length, crc = _FRAME.unpack_from(data, position)
        start = position + _FRAME.size
        payload = data[start : start + length]
        if length > _MAX_PAYLOAD or len(payload) < length or _crc(kind, payload) != crc:
            break
        records.append((kind, payload))
        position = start + length
    return records, position


def _header_from(payload: bytes) -> JournalHeader | None:
    with contextlib.suppress(ValueError, TypeError):
        document = json.loads(payload)
        if document.pop("version", None) == _VERSION:
            return JournalHeader(**document)
    return None


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
