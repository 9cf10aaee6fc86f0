"""Damaged pieces of a published file, fetched alone and put in their place.

The good bytes are gathered in a file without a name: from other files of this host that have
the piece at the same place (another version, for instance), else from the mirrors, by the
engine that fetches everything. Only pieces whose hash holds are then written into the
published file itself: a QEMU that runs has that inode open, and what it would read there is
wrong already, so that it gets true bytes without a restart. A file of that name with another
inode would mend only what starts later.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

import trio

from ddfs import errors
from ddfs.fetch.transfer import PieceRecord
from ddfs.model import ByteRange, Manifest, PieceMap, PublishedFile
from ddfs.spool.examine import Findings
from ddfs.spool.partial import storage_errors
from ddfs.spool.renewal import repair_unpacked
from ddfs.spool.room import reserve
from ddfs.spool.surroundings import Surroundings

# Reading other files, and writing into the published one.
_LIMITER = trio.CapacityLimiter(2)

# Until other hosts are told that it is over; a lease expires anyway.
_DISCLAIM_SECONDS: Final = 2.0


class Patch:
    """The good bytes, in a sparse file that nobody else sees; a fetch's Target.

    Pieces that are not damaged count as held, and are not in it.
    """

    def __init__(self, directory: Path, size: int, held: Sequence[int]) -> None:
        """Blocks. Raises :class:`errors.StorageError`."""
        self._held = list(held)
        self.path = directory
        with storage_errors(directory):
            name = directory / f".ddfs-patch-{os.getpid()}-{id(self)}"
            self.fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.unlink(name)
                os.ftruncate(self.fd, size)
            except BaseException:
                os.close(self.fd)
                raise

    @property
    def has_journaled(self) -> bool:
        """The sound pieces stay where they are."""
        return False

    def journaled(self) -> Sequence[PieceRecord]:
        """The pieces that need not be fetched."""
        return [PieceRecord(piece, "", b"") for piece in self._held]

    def hold(self, piece: int) -> None:
        """A piece was copied into it, and is right."""
        self._held.append(piece)

    async def commit(self, records: Sequence[PieceRecord]) -> None:
        """Nothing: after a crash it is gone, and is made anew."""

    async def note(self, records: Sequence[PieceRecord]) -> None:
        """Nothing."""

    async def forget(self, pieces: Sequence[int]) -> None:
        """Nothing."""

    def open_aside(self) -> IO[bytes]:
        """Another of its kind. Raises OSError."""
        return tempfile.TemporaryFile(dir=self.path, prefix=".ddfs-aside-", buffering=0)

    def close(self) -> None:
        """It is gone."""
        os.close(self.fd)


async def repair(
    published: PublishedFile,
    manifest: Manifest,
    pieces: PieceMap | None,
    findings: Findings,
    others: Sequence[Path],
    surroundings: Surroundings,
) -> None:
    """Put right what *findings* says is damaged in *published*.

    *others* are files that may have the bytes. Raises what a fetch raises: then the file
    is as damaged as before, or less. Cancelled, too. On a storage that hosts share one of them
    does it at a time: :class:`errors.AlreadyRunningError` to the others.
    """
    storage, content_id = surroundings.storage, manifest.content_id
    try:
        if not await trio.to_thread.run_sync(storage.claim, content_id):
            raise errors.AlreadyRunningError(
                f"{published.path}: another host is at it; try again when that has ended"
            )
        if manifest.packing is not None:
            await repair_unpacked(published, manifest, findings, surroundings)
        else:
            await _repair_pieces(published, manifest, pieces, findings, others, surroundings)
    finally:
        with trio.move_on_after(_DISCLAIM_SECONDS, shield=True):
            await trio.to_thread.run_sync(storage.disclaim, content_id)


async def _repair_pieces(
    published: PublishedFile,
    manifest: Manifest,
    pieces: PieceMap | None,
    findings: Findings,
    others: Sequence[Path],
    surroundings: Surroundings,
) -> None:
    storage, content_id, size = surroundings.storage, manifest.content_id, findings.grid.size
    held = sorted(set(range(findings.grid.count)) - set(findings.damaged))
    needed = sum(len(each) for each in findings.ranges)
    await reserve(storage, content_id, needed, surroundings.make_room)
    patch = None
    try:
        directory = storage.partial_path(content_id).parent
        patch = await trio.to_thread.run_sync(Patch, directory, size, held)
        if pieces is not None:
            await _copy_from(others, patch, pieces, findings)
            # Each piece is proved by its hash; the whole file is not in the patch.
            manifest = replace(manifest, digests=(), pieces=pieces)
        await surroundings.fetch(manifest, patch)
        await trio.to_thread.run_sync(
            storage.mend, published, patch.fd, findings.ranges, limiter=_LIMITER
        )
    finally:
        storage.release(content_id)
        if patch is not None:
            patch.close()


async def _copy_from(
    others: Sequence[Path], patch: Patch, pieces: PieceMap, findings: Findings
) -> None:
    """Take what other files have at the same place; one that cannot be read has nothing."""

    def copy() -> list[int]:
        taken: list[int] = []
        for path in others:
            try:
                with path.open("rb", buffering=0) as other:
                    for piece in findings.damaged:
                        if piece not in taken and _copied(
                            other.fileno(), patch, pieces, findings, piece
                        ):
                            taken.append(piece)
            except OSError:
                continue
        return taken

    for piece in await trio.to_thread.run_sync(copy, limiter=_LIMITER):
        patch.hold(piece)


def _copied(other: int, patch: Patch, pieces: PieceMap, findings: Findings, piece: int) -> bool:
    trio.from_thread.check_cancelled()
    where: ByteRange = findings.grid.bytes_of(piece)
    data = os.pread(other, len(where), where.start)
    hasher = pieces.algorithm.hasher()
    hasher.update(data)
    if hasher.digest() != pieces[piece]:
        return False
    with storage_errors(patch.path):
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += os.pwrite(patch.fd, view[done:], where.start + done)
    return True
