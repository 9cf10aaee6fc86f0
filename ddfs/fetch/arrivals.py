"""Pieces on their way from the threads that received them, the pieces of each run in order.

A thread may leave the hash of a piece to others. The pieces that its run brings after that
one wait behind it, so that the scheduler hears of them in the order in which they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from ddfs.fetch.verify import hash_buffer, hash_range
from ddfs.model import Grid, HashAlgorithm


@dataclass(eq=False, slots=True)
class Arrival:
    """*run* has written all of *piece*, of which *buffer*, unless None, has the bytes.

    ``digest`` is None until somebody has made it, and empty where nobody has to.
    """

    run: int
    piece: int
    digest: bytes | None
    buffer: bytearray | None


class Arrivals:
    """All that was put and not yet taken; only :meth:`put` is for other threads."""

    def __init__(self) -> None:
        self._came: deque[Arrival] = deque()
        self._queues: dict[int, deque[Arrival]] = {}
        self._emptied = trio.Event()

    def put(self, arrival: Arrival) -> None:
        """From any thread."""
        self._came.append(arrival)

    def collect(self) -> Iterator[Arrival]:
        """What came, each queued behind the others of its run when it is given out."""
        while self._came:
            arrival = self._came.popleft()
            self._queues.setdefault(arrival.run, deque()).append(arrival)
            yield arrival

    def ready(self, run: int) -> Iterator[Arrival]:
        """The first ones of *run* that are hashed; taken."""
        queue = self._queues.get(run, deque())
        while queue and queue[0].digest is not None:
            yield queue.popleft()
        if not queue and self._queues.pop(run, None) is not None:
            self._emptied.set()
            self._emptied = trio.Event()

    async def wait_for(self, run: int) -> None:
        """Until nothing of *run* waits to be hashed."""
        while run in self._queues:
            await self._emptied.wait()


async def hash_apart(arrival: Arrival, fd: int, grid: Grid, algorithm: HashAlgorithm) -> None:
    """Make its digest, out of its buffer or of the file *fd*. Raises StorageError."""
    place = grid.bytes_of(arrival.piece)
    if arrival.buffer is not None:
        view = memoryview(arrival.buffer)[: len(place)]
        arrival.digest = await hash_buffer(view, algorithm)
    else:
        arrival.digest = await hash_range(fd, place, algorithm)
