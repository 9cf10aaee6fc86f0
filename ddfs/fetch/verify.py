"""Hashing what is in the partial file, in threads of its own kind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ddfs import errors
from ddfs.fetch.hot import HotPieces
from ddfs.fetch.segment import storage_error
from ddfs.fetch.twofold import Sha256, update_both
from ddfs.model import ByteRange, Digest, Grid, HashAlgorithm, MiB

if TYPE_CHECKING:
    from hashlib import _Hash

# hashlib lets go of the GIL, so that hashing runs beside receiving; more threads than this
# would only take cores from each other.
_THREADS: Final = trio.CapacityLimiter(max(2, os.cpu_count() or 2))

_READ_BYTES: Final = 1 * MiB
# One visit to a thread: large enough that the way there costs nothing, small enough that a
# cancellation waits some hundredths of a second.
_VISIT_BYTES: Final = 32 * MiB


def decisive(digests: Sequence[Digest]) -> tuple[Digest, ...]:
    """The digests that a file has to match: all strong ones, and with none strong the rest."""
    strong = tuple(d for d in digests if d.algorithm.is_strong)
    return strong or tuple(digests)


class Hasher(Protocol):
    """What hashlib's and :class:`twofold.Sha256` have in common."""

    def update(self, data: memoryview, /) -> None:
        """Go on with *data*."""

    def copy(self) -> Hasher:
        """Another one that has the same bytes."""

    def hexdigest(self) -> str:
        """In lower case."""


def _hasher(algorithm: HashAlgorithm, *, twofold: bool) -> Hasher:
    return Sha256() if twofold and algorithm is HashAlgorithm.SHA256 else algorithm.hasher()


class FrontHasher:
    """The whole-file hashes of the first ``position`` bytes of a growing file.

    Bytes from ``reached`` on were not looked at. Pieces that *hot* has are not read back.
    With *hashes_pieces* it can make the digests of pieces as well, at :meth:`hash_next`.
    """

    def __init__(
        self,
        fd: int,
        grid: Grid,
        digests: Sequence[Digest],
        hot: HotPieces,
        *,
        hashes_pieces: bool = False,
    ) -> None:
        self.position = 0
        self.reached = 0
        self._fd = fd
        self._grid = grid
        self._hot = hot
        hot.front = 0
        self._digests = tuple(digests)
        self._hashes = [_hasher(digest.algorithm, twofold=hashes_pieces) for digest in digests]
        # With the piece that hash_next() looked at last, and its length.
        self._ahead: tuple[list[Hasher], int] | None = None
        self._buffer = memoryview(bytearray(_READ_BYTES))

    async def advance(self, end: int) -> None:
        """Hash some bytes on, to *end* at most. Raises :class:`errors.StorageError`.

        Cancelled: it waits for its thread, and the state stays true.
        """
        end = self.reached = min(end, self.position + _VISIT_BYTES)
        await trio.to_thread.run_sync(self._advance, end, limiter=_THREADS)

    def _advance(self, end: int) -> None:
        with self._hot.followed():
            self._hash_to(end)

    def _hash_to(self, end: int) -> None:
        while self.position < end:
            piece = self.position // self._grid.piece_length
            place = self._grid.bytes_of(piece)
            kept = (
                self._hot.take(piece) if self.position == place.start <= end - len(place) else None
            )
            if kept is not None:
                self._update(memoryview(kept)[: len(place)])
                self._hot.give_back(kept)
                continue
            # Not across a piece's end, where the next one may be in memory.
            view = self._buffer[: min(_READ_BYTES, min(place.end, end) - self.position)]
            _read_into(self._fd, view, self.position)
            self._update(view)

    async def hash_next(self, buffer: bytearray) -> bytes:
        """The SHA-256 of the piece at ``position``, which *buffer* has, made in the same pass.

        The position stays: :meth:`accept` says that the piece is right. Cancelled: it waits
        for its thread, and the state stays true.
        """
        self._ahead = None
        return await trio.to_thread.run_sync(self._hash_next, buffer, limiter=_THREADS)

    def _hash_next(self, buffer: bytearray) -> bytes:
        piece = self.position // self._grid.piece_length
        view = memoryview(buffer)[: len(self._grid.bytes_of(piece))]
        own, todo = Sha256(), True
        ahead = [each.copy() for each in self._hashes]
        with self._hot.followed():
            if (stale := self._hot.take(piece)) is not None:
                self._hot.give_back(stale)
            for each in ahead:
                if todo and isinstance(each, Sha256):
                    update_both(each, own, view)
                    todo = False
                else:
                    each.update(view)
        if todo:
            raise RuntimeError("no SHA-256 of the whole file is made")
        self._ahead = ahead, len(view)
        return own.digest()

    def accept(self) -> None:
        """The piece that :meth:`hash_next` looked at last is right, and in the file."""
        if self._ahead is None:
            raise RuntimeError("no piece was hashed")
        self._hashes, length = self._ahead
        self._ahead = None
        self.position += length
        self.reached = max(self.reached, self.position)

    def _update(self, view: memoryview) -> None:
        for each in self._hashes:
            each.update(view)
        self.position += len(view)

    def mismatches(self) -> list[Digest]:
        """The digests that the bytes so far do not have."""
        pairs = zip(self._digests, self._hashes, strict=True)
        return [digest for digest, made in pairs if made.hexdigest() != digest.hexdigest]


async def hash_buffer(view: memoryview, algorithm: HashAlgorithm) -> bytes:
    """The digest of what is in memory. Cancelled: it waits for its thread."""
    return await trio.to_thread.run_sync(_hash_buffer, view, algorithm, limiter=_THREADS)


def _hash_buffer(view: memoryview, algorithm: HashAlgorithm) -> bytes:
    made = algorithm.hasher()
    made.update(view)
    return made.digest()


async def hash_range(fd: int, wanted: ByteRange, algorithm: HashAlgorithm) -> bytes:
    """The digest of a range of the file. Raises :class:`errors.StorageError`."""
    return await trio.to_thread.run_sync(_hash_range, fd, wanted, algorithm, limiter=_THREADS)


async def find_damaged(
    fd: int,
    grid: Grid,
    pieces: Iterable[int],
    algorithm: HashAlgorithm,
    expected: Callable[[int], bytes],
) -> list[int]:
    """Those of *pieces* whose bytes in the file are not the ones that once arrived.

    Raises :class:`errors.StorageError`.
    """
    damaged: list[int] = []
    failures: list[errors.HostError] = []
    todo = iter(pieces)

    async def look() -> None:
        try:
            for piece in todo:
                made = await hash_range(fd, grid.bytes_of(piece), algorithm)
                damaged.extend([piece] if made != expected(piece) else [])
        except errors.HostError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(int(_THREADS.total_tokens)):
            nursery.start_soon(look)
    if failures:
        raise failures[0]
    return sorted(damaged)


async def holes_of(fd: int, size: int) -> frozenset[ByteRange]:
    """What of the first *size* bytes is in no block of the file system: never written, written as
    nothing but zeros where those are not stored, punched out, or cut off.

    Where nobody can tell, that is all of it.
    """
    return await trio.to_thread.run_sync(_holes_of, fd, size, limiter=_THREADS)


def _holes_of(fd: int, size: int) -> frozenset[ByteRange]:
    found: list[ByteRange] = []
    try:
        end = min(size, os.fstat(fd).st_size)
        if end < size:
            found.append(ByteRange(end, size))
        position = 0
        while position < end and (start := os.lseek(fd, position, os.SEEK_HOLE)) < end:
            try:
                position = min(end, os.lseek(fd, start, os.SEEK_DATA))
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                position = end  # nothing but a hole from there on
            found.append(ByteRange(start, position))
    except OSError:
        return frozenset([ByteRange(0, size)] if size else [])
    return frozenset(found)


def _hash_range(fd: int, wanted: ByteRange, algorithm: HashAlgorithm) -> bytes:
    made: _Hash = algorithm.hasher()
    buffer = memoryview(bytearray(min(_READ_BYTES, len(wanted))))
    position = wanted.start
    while position < wanted.end:
        view = buffer[: min(len(buffer), wanted.end - position)]
        _read_into(fd, view, position)
        made.update(view)
        position += len(view)
    return made.digest()


def _read_into(fd: int, view: memoryview, position: int) -> None:
    """Fill *view*; the file has to be that long, for its pieces were written."""
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], position + done)
        except OSError as error:
            raise storage_error(error) from error
        if count == 0:
            raise errors.StorageError(
                "the partial file became shorter while it was fetched; somebody else changed it"
            )
        done += count
