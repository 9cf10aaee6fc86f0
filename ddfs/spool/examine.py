"""Is what stands in primary storage still what was published, and where is it not? Blocks.

One pass over the file makes the whole-file hashes and those of its pieces: the document's, or
our own (a *fingerprint*) where it has none. Those are made when the whole-file hash holds, so
that damage that comes later can be told from good bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ddfs.fetch.verify import decisive
from ddfs.model import ByteRange, Grid, HashAlgorithm, Manifest, MiB, PieceMap
from ddfs.spool.partial import storage_errors

_BLOCK_BYTES: Final = 1 * MiB


@dataclass(frozen=True, slots=True)
class Findings:
    """What an examination found.

    ``damaged`` are numbers of pieces of ``grid``; all of them where it cannot be told which.
    ``fingerprint`` is there where the file is sound and had no (true) piece hashes before.
    """

    grid: Grid
    damaged: tuple[int, ...]
    can_tell: bool
    fingerprint: PieceMap | None = None

    @property
    def ranges(self) -> tuple[ByteRange, ...]:
        """The damaged bytes, neighbouring pieces as one."""
        return joined([self.grid.bytes_of(piece) for piece in self.damaged])


def examine(
    path: Path,
    published: Manifest,
    pieces: PieceMap | None,
    progress: Callable[[int], None],
    *,
    from_disk: bool,
) -> Findings:
    """Compare the file at *path* with the whole-file hashes of *published*, and *pieces*.

    *progress* gets how many bytes were looked at, in the thread. *from_disk*: what is in
    memory of it is dropped first, because memory is not what may be damaged. Ends at the next
    mebibyte when the caller is cancelled. Raises :class:`ddfs.errors.StorageError`.
    """
    assert published.size is not None
    own = Manifest(published.name, published.size, published.digests, pieces, ())
    grid = own.grid
    digests = decisive(published.digests)
    hashers = [digest.algorithm.hasher() for digest in digests]
    algorithm = pieces.algorithm if pieces is not None else HashAlgorithm.SHA256
    found: list[bytes] = []
    with storage_errors(path), path.open("rb", buffering=0) as file:
        is_long = os.fstat(file.fileno()).st_size > grid.size
        if from_disk:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for number in range(grid.count):
            hasher = algorithm.hasher()
            where = grid.bytes_of(number)
            for start in range(where.start, where.end, _BLOCK_BYTES):
                trio.from_thread.check_cancelled()
                block = os.pread(file.fileno(), min(_BLOCK_BYTES, where.end - start), start)
                for each in (hasher, *hashers):
                    each.update(block)
            found.append(hasher.digest())
            progress(where.end)
    is_whole = not is_long and all(
        hasher.hexdigest() == digest.hexdigest
        for hasher, digest in zip(hashers, digests, strict=True)
    )
    return _concluded(grid, pieces, found, is_whole=is_whole, has_digests=bool(digests))


def _concluded(
    grid: Grid,
    pieces: PieceMap | None,
    found: Sequence[bytes],
    *,
    is_whole: bool,
    has_digests: bool,
) -> Findings:
    damaged: tuple[int, ...] = ()
    if pieces is not None:
        damaged = tuple(n for n, digest in enumerate(found) if digest != pieces[n])
    if is_whole and has_digests:
        # Piece hashes that deny it came with another document of the same content, and lie.
        made = None
        if pieces is None or (damaged and pieces.algorithm is HashAlgorithm.SHA256):
            made = PieceMap(HashAlgorithm.SHA256, grid.piece_length, b"".join(found))
        return Findings(grid, (), can_tell=True, fingerprint=made)
    if damaged or (is_whole and pieces is not None):
        return Findings(grid, damaged, can_tell=True)
    return Findings(grid, tuple(range(grid.count)), can_tell=False)


def joined(ranges: Sequence[ByteRange]) -> tuple[ByteRange, ...]:
    """Ascending *ranges*, those that touch as one."""
    result: list[ByteRange] = []
    for each in ranges:
        if result and result[-1].end == each.start:
            result[-1] = ByteRange(result[-1].start, each.end)
        else:
            result.append(each)
    return tuple(result)
