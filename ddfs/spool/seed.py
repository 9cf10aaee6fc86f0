"""Pieces that are on this host already: from files that somebody names as seeds.

With piece hashes every piece of a seed that the manifest wants is used, wherever in the
file it is wanted; without them a seed is used as a whole, if its size and its hashes are
the manifest's. What was copied is hashed again in the partial file before the journal says
so: a seed may change under our hands. A seed is opened for reading alone, and one that
cannot be read to its end costs what it would have brought, not the fetch.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.fetch.transfer import PieceRecord
from ddfs.fetch.verify import decisive
from ddfs.model import ByteRange, HashAlgorithm, Manifest, MiB
from ddfs.spool.partial import PartialFile, storage_errors

log = logging.getLogger(__name__)

# Hashing of one file beside another saturates a disk; seeds of more fetches wait.
_LIMITER: Final = trio.CapacityLimiter(2)

_BLOCK_BYTES: Final = 1 * MiB

# What is found is journaled after so much was looked at, so that a crash keeps it.
_VISIT_BYTES: Final = 64 * MiB


class _UnreadableError(Exception):
    """The seed, and not the partial file, is to blame."""


def check_seed(path: Path, mountpoint: Path | None = None) -> None:
    """Raises :class:`errors.InvalidValueError` for what cannot be a seed; blocks.

    A file in the mount is none: reading it would wait for the fetch that it should help.
    """
    fd = _open(path)
    try:
        real = Path(os.readlink(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)
    if mountpoint is not None and mountpoint in real.parents:
        raise errors.InvalidValueError(
            f"{path}: lies in the template pool; a seed is a file outside of it"
        )


def _open(path: Path) -> int:
    try:
        # O_NONBLOCK: a fifo would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise errors.InvalidValueError(
            f"{path}: cannot be a seed: {error.strerror or error}"
        ) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise errors.InvalidValueError(f"{path}: cannot be a seed: not a regular file")
    return fd


async def plant(partial: PartialFile, manifest: Manifest, seeds: Sequence[Path]) -> int:
    """Fill *partial* with what *seeds* have of *manifest*; returns how many bytes.

    Committed on return; after a cancellation, all but the last visit of a seed. Raises
    :class:`errors.StorageError` and :class:`errors.StorageFullError`, of the partial file
    alone: a seed that fails is logged.
    """
    before = partial.bytes_here
    if manifest.is_unpinned:
        return 0  # nothing could tell right bytes from wrong ones
    for path in seeds:
        if partial.bytes_here == manifest.size:
            break
        try:
            await _plant(partial, manifest, path)
        except (errors.InvalidValueError, _UnreadableError) as error:
            log.warning("a seed is of no use: %s", error)
    planted = partial.bytes_here - before
    if seeds:
        log.info("%s: %d bytes came from seeds", manifest.name, planted)
    return planted


async def _plant(partial: PartialFile, manifest: Manifest, path: Path) -> None:
    sowing = await trio.to_thread.run_sync(_Sowing, partial, manifest, path, limiter=_LIMITER)
    visit = sowing.visit_pieces if manifest.pieces is not None else sowing.visit_whole
    try:
        while not sowing.is_done:
            records = await trio.to_thread.run_sync(visit, limiter=_LIMITER)
            if records:
                await partial.commit(records)
    finally:
        sowing.close()


class _Sowing:
    """One seed on its way into one partial file. Its visits run in threads, one at a time."""

    def __init__(self, partial: PartialFile, manifest: Manifest, path: Path) -> None:
        self._fd = _open(path)
        # A seed that is the partial file itself is what resuming is for.
        self.is_done = os.path.sameopenfile(self._fd, partial.fd)
        self._partial = partial
        self._manifest = manifest
        self._grid = manifest.grid
        self._size = os.fstat(self._fd).st_size
        self._position = 0
        self._buffer = memoryview(bytearray(_BLOCK_BYTES))
        here = {record.piece for record in partial.journaled()}
        self._missing = {piece for piece in range(self._grid.count) if piece not in here}
        # By hash, since a piece may stand elsewhere in the seed, or be wanted twice.
        self._wanted: dict[bytes, list[int]] = {}
        if manifest.pieces is not None:
            for piece in sorted(self._missing):
                self._wanted.setdefault(manifest.pieces[piece], []).append(piece)

    def close(self) -> None:
        """Close the seed; no visit is under way."""
        os.close(self._fd)

    # -- with piece hashes ----------------------------------------------------------

    def visit_pieces(self) -> list[PieceRecord]:
        """Look at some more of the seed; what was copied and is right."""
        found: list[PieceRecord] = []
        end = self._position + max(_VISIT_BYTES, self._grid.piece_length)
        while self._missing and self._position < min(end, self._size):
            for part in self._parts_at(self._position):
                found += [PieceRecord(piece, "", b"") for piece in self._use(part)]
            self._position += self._grid.piece_length
        self.is_done = not self._missing or self._position >= self._size
        return found

    def _parts_at(self, start: int) -> Iterator[ByteRange]:
        """What may be a wanted piece: of full length, or the shorter one that ends a file."""
        last = self._grid.count - 1
        tail = len(self._grid.bytes_of(last))
        is_tail_missing = last in self._missing
        length = self._grid.piece_length
        if (
            len(self._missing) > (is_tail_missing and tail < length)
            and start + length <= self._size
        ):
            yield ByteRange(start, start + length)
        if is_tail_missing and tail < length:
            at_its_place = start == last * length and start + tail <= self._size
            if at_its_place or start + tail == self._size:
                yield ByteRange(start, start + tail)

    def _use(self, part: ByteRange) -> list[int]:
        pieces = self._manifest.pieces
        assert pieces is not None
        digest = self._hash(self._read_seed, part, pieces.algorithm)
        used = []
        for piece in self._wanted.get(digest, ()):
            target = self._grid.bytes_of(piece)
            if piece in self._missing and len(target) == len(part):
                self._copy(part.start, target)
                if self._hash(self._read_copy, target, pieces.algorithm) == digest:
                    self._missing.discard(piece)
                    used.append(piece)
        return used

    # -- without --------------------------------------------------------------------

    def visit_whole(self) -> list[PieceRecord]:
        """Use all of the seed, if it is the file; in pieces of our own with our own hash."""
        self.is_done = True
        if self._size != self._grid.size or not self._is_the_file():
            return []
        found = []
        for piece in sorted(self._missing):
            target = self._grid.bytes_of(piece)
            self._copy(target.start, target)
            digest = self._hash(self._read_copy, target, HashAlgorithm.SHA256)
            found.append(PieceRecord(piece, "", digest))
        return found

    def _is_the_file(self) -> bool:
        digests = decisive(self._manifest.digests)
        hashers = [digest.algorithm.hasher() for digest in digests]
        for block in self._blocks(self._read_seed, ByteRange(0, self._size)):
            for hasher in hashers:
                hasher.update(block)
        found = [hasher.hexdigest() for hasher in hashers]
        return bool(found) and found == [digest.hexdigest for digest in digests]

    # -- bytes ----------------------------------------------------------------------

    def _copy(self, start: int, target: ByteRange) -> None:
        """Copy into the partial file; as a reflink where the file system has them."""
        source, position = start, target.start
        while position < target.end:
            trio.from_thread.check_cancelled()
            count = min(target.end - position, _VISIT_BYTES)
            copied = self._clone(source, position, count) or self._rewrite(source, position, count)
            source, position = source + copied, position + copied

    def _clone(self, source: int, position: int, count: int) -> int:
        """How many bytes the kernel copied; 0 where it cannot, for whatever reason."""
        try:
            return os.copy_file_range(self._fd, self._partial.fd, count, source, position)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                with storage_errors(self._partial.path):
                    raise
            return 0

    def _rewrite(self, source: int, position: int, count: int) -> int:
        view = self._buffer[: min(count, _BLOCK_BYTES)]
        self._read_seed(view, source)
        done = 0
        with storage_errors(self._partial.path):
            while done < len(view):
                done += os.pwrite(self._partial.fd, view[done:], position + done)
        return done

    def _hash(
        self, read: Callable[[memoryview, int], None], part: ByteRange, algorithm: HashAlgorithm
    ) -> bytes:
        hasher = algorithm.hasher()
        for block in self._blocks(read, part):
            hasher.update(block)
        return hasher.digest()

    def _blocks(
        self, read: Callable[[memoryview, int], None], part: ByteRange
    ) -> Iterator[memoryview]:
        for start in range(part.start, part.end, _BLOCK_BYTES):
            trio.from_thread.check_cancelled()
            block = self._buffer[: min(_BLOCK_BYTES, part.end - start)]
            read(block, start)
            yield block

    def _read_seed(self, view: memoryview, position: int) -> None:
        try:
            self._fill(self._fd, view, position)
        except (OSError, EOFError) as error:
            raise _UnreadableError(f"it cannot be read to its end: {error}") from error

    def _read_copy(self, view: memoryview, position: int) -> None:
        try:
            with storage_errors(self._partial.path):
                self._fill(self._partial.fd, view, position)
        except EOFError:
            raise errors.StorageError(
                f"{self._partial.path}: it became shorter; somebody else changed it"
            ) from None

    @staticmethod
    def _fill(fd: int, view: memoryview, position: int) -> None:
        done = 0
        while done < len(view):
            count = os.preadv(fd, [view[done:]], position + done)
            if count == 0:
                raise EOFError("it became shorter")
            done += count
