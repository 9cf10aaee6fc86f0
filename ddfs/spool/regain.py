"""Pieces that are on disk and right, although an earlier run had no time to journal them.

A process that is killed leaves what arrived since its last commit in the page cache, and the
file. With piece hashes such a piece is as good as a journaled one: its own bytes prove it,
whoever wrote them. Only pieces without a hole are looked at, which are those that were under
way; a power loss may have left zeros or other rubbish there, which match no hash.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from typing import Final

import trio

from ddfs.fetch.transfer import PieceRecord
from ddfs.fetch.verify import hash_range
from ddfs.model import ByteRange, Manifest, MiB
from ddfs.spool.partial import PartialFile, storage_errors

log = logging.getLogger(__name__)

_LIMITER: Final = trio.CapacityLimiter(2)

# A second's work. What was under way is far less; a file system that knows no holes would
# have the whole file hashed.
MAX_BYTES: Final = 1024 * MiB


async def regain(partial: PartialFile, manifest: Manifest) -> int:
    """Journal what is right of what is not journaled; returns how many bytes that is.

    Nothing without piece hashes. Raises :class:`errors.StorageError` and
    :class:`errors.StorageFullError`; cancelled, it leaves the journal as it was.
    """
    pieces = manifest.pieces
    if pieces is None or os.fstat(partial.fd).st_blocks == 0:
        return 0
    found = await trio.to_thread.run_sync(_unjournaled, partial, manifest, limiter=_LIMITER)
    records = []
    for piece in found:
        made = await hash_range(partial.fd, manifest.grid.bytes_of(piece), pieces.algorithm)
        if made == pieces[piece]:
            records.append(PieceRecord(piece, "", b""))
    if not records:
        return 0
    await partial.commit(records)
    regained = sum(len(manifest.grid.bytes_of(record.piece)) for record in records)
    log.info("%s: %d bytes were here without being journaled", manifest.name, regained)
    return regained


def _unjournaled(partial: PartialFile, manifest: Manifest) -> list[int]:
    """Pieces that the journal does not know, and that have no hole; blocks."""
    grid = manifest.grid
    journaled = {record.piece for record in partial.journaled()}
    found: list[int] = []
    room = MAX_BYTES
    with storage_errors(partial.path):
        for part in _data(partial.fd):
            for piece in range(-(-part.start // grid.piece_length), grid.count):
                place = grid.bytes_of(piece)
                if place.end > part.end:
                    break
                if piece in journaled:
                    continue
                if len(place) > room:
                    return found
                found.append(piece)
                room -= len(place)
    return found


def _data(fd: int) -> Iterator[ByteRange]:
    """What of the file is no hole."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole from there on
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield ByteRange(start, end)
