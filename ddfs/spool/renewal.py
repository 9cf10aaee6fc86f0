"""Good bytes for a published file that was unpacked: from the packed file, fetched once more.

No mirror has pieces of what came out. So all of the packed file is fetched and verified as
when it came first, and unpacked beside the published file; what comes out has to have the
hash that is known of it, and only the pieces that differ are then written into the published
file itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.model import ByteRange, Manifest, PublishedFile
from ddfs.spool.examine import Findings, joined
from ddfs.spool.partial import PartialFile, storage_errors
from ddfs.spool.room import reserve
from ddfs.spool.surroundings import Surroundings
from ddfs.spool.unpacking import room_for, unpack

# Comparing two files, and writing into one, saturate a disk.
_LIMITER: Final = trio.CapacityLimiter(1)

# What is left is deleted also when the daemon ends; the next one would do it, too.
_DISCARD_SECONDS: Final = 2.0


async def repair_unpacked(
    published: PublishedFile, manifest: Manifest, findings: Findings, around: Surroundings
) -> None:
    """Put right what *findings* says is damaged in *published*, which came out of *manifest*.

    Raises :class:`errors.MirrorsExhaustedError` where the packed file is not to be had any more
    as it was, :class:`errors.AlreadyRunningError` while it is fetched, and what reserving,
    unpacking and mending raise. Before the mending, nothing of
    the published file was changed; and nothing is left of the packed one in any case.
    """
    storage, content_id = around.storage, manifest.content_id
    if around.unpack is None:
        raise errors.ImageError(f"{manifest.name}: packed images are not unpacked here")
    files = storage.partial_path(content_id), storage.journal_path(content_id)
    # First, since what a fetch of the same content has is not ours to reserve or to delete.
    packed = await trio.to_thread.run_sync(PartialFile.open, *files, manifest)
    try:
        await reserve(storage, content_id, room_for(manifest), around.make_room)
        fresh = await _unpacked_anew(manifest, packed, around)
        await trio.to_thread.run_sync(_mend, around, published, fresh, findings, limiter=_LIMITER)
    finally:
        try:
            # As long as it is locked: nobody else's can have its name.
            with trio.move_on_after(_DISCARD_SECONDS, shield=True):
                await trio.to_thread.run_sync(storage.discard, content_id)
        finally:
            packed.close()
            storage.release(content_id)


async def _unpacked_anew(manifest: Manifest, packed: PartialFile, around: Surroundings) -> Path:
    """The unpacked file, out of *packed*, which is fetched; raises as :func:`repair_unpacked`."""
    try:
        await around.fetch(manifest, packed)
        return await unpack(manifest, packed, around)
    except errors.SourceError as error:
        raise errors.MirrorsExhaustedError(
            "its packed file is not to be had again as it was, so that nothing was changed: "
            f"{error}"
        ) from None


def _mend(around: Surroundings, published: PublishedFile, fresh: Path, findings: Findings) -> None:
    with storage_errors(fresh):
        source = os.open(fresh, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with storage_errors(Path(published.path)):
            ranges = _differing(source, published, findings)
        around.storage.mend(published, source, ranges)
    finally:
        os.close(source)


def _differing(source: int, published: PublishedFile, findings: Findings) -> Sequence[ByteRange]:
    """The pieces that are not in *published* as they are in *source*."""
    found: list[ByteRange] = []
    target = os.open(published.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for piece in findings.damaged:
            where = findings.grid.bytes_of(piece)
            if os.pread(source, len(where), where.start) != _read(target, where):
                found.append(where)
    finally:
        os.close(target)
    return joined(found)


def _read(target: int, where: ByteRange) -> bytes | None:
    """What is there; None for what the disk does not give any more, and writing may mend."""
    trio.from_thread.check_cancelled()
    try:
        return os.pread(target, len(where), where.start)
    except OSError:
        return None
