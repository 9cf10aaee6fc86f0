"""Bytes that a repair replaced, kept until the whole-file hash has decided.

Where nobody has a majority the file is taken from one mirror alone after the other. What the
first one's bytes replaced need not be fetched again when it turns out to be the liar.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import IO, Final

import trio

from ddfs.fetch.segment import storage_error
from ddfs.fetch.target import Target
from ddfs.model import Grid, MiB

_log = logging.getLogger(__name__)

# A disk that is busy with copying serves others as well.
_THREADS: Final = trio.CapacityLimiter(2)

_COPY_BYTES: Final = 1 * MiB

# At most this part of what is free: it saves time, and others need room for their data.
_SHARE_OF_FREE: Final = 2


class Aside:
    """Versions of pieces of *target* in an unnamed file beside it, each known by its digest.

    The file comes with the first piece. Where there is no room for it nothing is kept, and is
    fetched again instead.
    """

    def __init__(self, target: Target, grid: Grid) -> None:
        self._target = target
        self._grid = grid
        self._file: IO[bytes] | None = None
        self._places: dict[tuple[int, bytes], int] = {}
        self._end = 0

    def has(self, piece: int, digest: bytes) -> bool:
        """Whether that version of *piece* is kept."""
        return (piece, digest) in self._places

    async def keep(self, versions: Mapping[int, bytes]) -> None:
        """Keep the pieces as they are in the target, which have these digests.

        Fails silently but for the log. Cancelled: it waits for its thread.
        """
        await trio.to_thread.run_sync(self._keep, versions, limiter=_THREADS)

    def _keep(self, versions: Mapping[int, bytes]) -> None:
        try:
            if self._file is None:
                self._file = self._target.open_aside()
            room = os.fstatvfs(self._file.fileno())
            free = room.f_bavail * room.f_frsize
            if sum(len(self._grid.bytes_of(p)) for p in versions) * _SHARE_OF_FREE > free:
                return
            for piece, digest in versions.items():
                place = self._grid.bytes_of(piece)
                fds = self._target.fd, self._file.fileno()
                _copy(*fds, place.start, self._end, len(place))
                self._places[piece, digest] = self._end
                self._end += len(place)
        except OSError as error:
            _log.info("nothing is kept aside: %s", error)

    async def put_back(self, versions: Mapping[int, bytes]) -> None:
        """Write these versions, which it has, into the target.

        Raises :class:`errors.StorageError` and :class:`errors.StorageFullError`; the pieces
        are then undefined.
        """
        await trio.to_thread.run_sync(self._put_back, versions.items(), limiter=_THREADS)

    def _put_back(self, versions: Iterable[tuple[int, bytes]]) -> None:
        if self._file is None:
            raise RuntimeError("nothing was kept")
        try:
            for piece, digest in versions:
                place = self._grid.bytes_of(piece)
                fds = self._file.fileno(), self._target.fd
                _copy(*fds, self._places[piece, digest], place.start, len(place))
        except OSError as error:
            raise storage_error(error) from error

    def close(self) -> None:
        """All of it is gone; twice is no mistake."""
        self._places.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def _copy(source: int, target: int, start: int, to: int, length: int) -> None:
    for at in range(0, length, _COPY_BYTES):
        count = min(_COPY_BYTES, length - at)
        data = os.pread(source, count, start + at)
        if len(data) < count or os.pwrite(target, data, to + at) < count:
            raise OSError("a file became shorter, or the disk is full")
