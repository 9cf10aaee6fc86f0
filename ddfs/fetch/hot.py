"""Pieces that have just arrived, kept in memory until the whole-file hash has passed them.

Reading a piece back from the page cache takes 0.2 s of a core for each GiB, a quarter of
what hashing it takes. Only pieces right behind the front of the file are kept, since the
hash comes to those soon. While it is hashing, whoever brings such a piece waits a moment for
a buffer: going faster than the hash would only leave it more to read back.

A buffer is in one place at a time: lent to a segment, on its way with the piece that it
holds, kept, or free. Nothing here knows whether bytes are right: whoever calls :meth:`keep`
says that the file has the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ddfs.model import MiB

# Four pieces of 4 MiB: one that arrives, one that is hashed, and two on the way between.
HOT_BYTES: Final = 16 * MiB
# For all fetches of a process; those that find no room read back from the page cache.
HOT_BYTES_IN_ALL: Final = 64 * MiB

# Who is no further ahead than so many times HOT_BYTES waits for the hash.
_REACH: Final = 4
# It waits no longer than its piece takes at this rate, which is far below any hash's: after
# a resumption much is hashed that nobody brings, and the mirrors are not to stand still.
_WAIT_BYTES_PER_SECOND: Final = 400 * MiB


class HotRoom:
    """Memory that several fetches share, counted. Thread-safe."""

    def __init__(self, limit: int = HOT_BYTES_IN_ALL) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Take *count* bytes if there are so many left."""
        with self._lock:
            if self._left < count:
                return False
            self._left -= count
            return True

    def give_back(self, count: int) -> None:
        """*count* bytes that were taken are free."""
        with self._lock:
            self._left += count


class HotPieces:
    """Buffers of *piece_length* for up to HOT_BYTES of *room*; none where two would not fit.

    ``front`` is the first piece that the hash did not pass. Thread-safe.
    """

    def __init__(self, piece_length: int, room: HotRoom) -> None:
        self.front = 0
        self._room = room
        self._piece_length = piece_length
        count = HOT_BYTES // piece_length
        self._limit = count if count > 1 else 0
        self._made = 0
        self._free: list[bytearray] = []
        self._kept: dict[int, bytearray] = {}
        # Whether the hash is at work, and not waiting for the front itself.
        self._is_followed = False
        self._changed = threading.Condition()

    @contextmanager
    def followed(self) -> Iterator[None]:
        """The hash goes on meanwhile, so that buffers come back."""
        self._is_followed = True
        try:
            yield
        finally:
            with self._changed:
                self._is_followed = False
                self._changed.notify_all()

    def lend(self, piece: int) -> bytearray | None:
        """A buffer to receive *piece* into, if the hash comes to it soon; in a thread.

        May wait a moment, as long as the hash is at work.
        """
        deadline = time.monotonic() + self._piece_length / _WAIT_BYTES_PER_SECOND
        with self._changed:
            while (buffer := self._lend(piece)) is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._is_soon(piece):
                    return None
                self._changed.wait(left)
            return buffer

    def _is_soon(self, piece: int) -> bool:
        """Whether a buffer for *piece* comes back soon: no hole keeps the hash from going on."""
        is_near = 0 <= piece - self.front < _REACH * self._limit
        is_moving = self._is_followed or not self._kept or self.front in self._kept
        return is_near and self._made > 0 and is_moving

    def _lend(self, piece: int) -> bytearray | None:
        if not 0 <= piece - self.front < self._limit:
            return None
        if self._free:
            return self._free.pop()
        if self._made < self._limit and self._room.take(self._piece_length):
            self._made += 1
            return bytearray(self._piece_length)
        # The hash waits for the front: what is behind it has to be read back.
        furthest = max(self._kept, default=piece)
        if self._is_followed or furthest <= piece:
            return None
        return self._kept.pop(furthest)

    def keep(self, piece: int, buffer: bytearray) -> None:
        """*buffer* holds the bytes that *piece* has in the file."""
        with self._changed:
            self._drop(piece)
            self._kept[piece] = buffer

    def take(self, piece: int) -> bytearray | None:
        """The bytes of *piece*, if they are kept; to be given back. The hash is at *piece*."""
        with self._changed:
            # A piece that the hash entered before it was kept is read back, and left behind.
            for passed in [each for each in self._kept if each < piece]:
                self._drop(passed)
            self.front = piece + 1
            self._changed.notify_all()
            return self._kept.pop(piece, None)

    def give_back(self, buffer: bytearray) -> None:
        """*buffer* is of no more use."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()

    def forget(self, piece: int) -> None:
        """What *piece* has in the file is not right, or changes."""
        with self._changed:
            self._drop(piece)

    def close(self) -> None:
        """Give the room back; nothing is lent from now on."""
        with self._changed:
            self._room.give_back(self._made * self._piece_length)
            self._made = self._limit = 0
            self._free.clear()
            self._kept.clear()
            self._changed.notify_all()

    def _drop(self, piece: int) -> None:
        if (old := self._kept.pop(piece, None)) is not None:
            self._free.append(old)
            self._changed.notify_all()
