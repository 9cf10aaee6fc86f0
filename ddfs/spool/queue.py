"""Which fetches run, and which wait their turn.

Whoever somebody waits for by name (a person, a domain's start) comes before what is merely
read, and that before the retries of what failed; among equals, who came first. A queued
fetch counts as on its way: its readers wait in it as in any other.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import trio

from ddfs.spool.rest import Demand

# As the setting's default.
FETCHES_AT_ONCE: Final = 16

_RANKS: Final = {Demand.HAND: 0, Demand.START: 0, Demand.READER: 1, Demand.RETRY: 2}


class Place:
    """One fetch's place: an async context manager that is entered when its turn has come.

    Cancelled or failed, it is given up.
    """

    def __init__(self, queue: Queue, demand: Demand) -> None:
        self._queue = queue
        self._rank = _RANKS[demand]
        self._turn = trio.Event()

    @property
    def rank(self) -> int:
        """The lower, the sooner."""
        return self._rank

    def hasten(self, demand: Demand) -> None:
        """Somebody else wants it too; it only comes sooner so."""
        self._rank = min(self._rank, _RANKS[demand])

    def begin(self) -> None:
        """Its turn has come; the queue says so, once."""
        self._turn.set()

    async def __aenter__(self) -> Self:
        try:
            await self._turn.wait()
        except BaseException:
            self._queue.leave(self)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.leave(self)


class Queue:
    """At most ``at_once`` places have their turn. In one event loop; nothing here blocks."""

    def __init__(self, at_once: int = FETCHES_AT_ONCE) -> None:
        self._at_once = at_once
        self._running: set[Place] = set()
        # In the order in which they came.
        self._waiting: list[Place] = []

    @property
    def at_once(self) -> int:
        """How many fetches run at most."""
        return self._at_once

    def change(self, at_once: int) -> None:
        """Another limit; what runs beyond it ends by itself."""
        self._at_once = at_once
        self._advance()

    def enter(self, demand: Demand) -> Place:
        """A place for a fetch; its turn may have come at once."""
        place = Place(self, demand)
        self._waiting.append(place)
        self._advance()
        return place

    def leave(self, place: Place) -> None:
        """Give *place* up; again, it is no mistake."""
        self._running.discard(place)
        if place in self._waiting:
            self._waiting.remove(place)
        self._advance()

    def _advance(self) -> None:
        while self._waiting and len(self._running) < self._at_once:
            # min() takes the first of equals.
            place = min(self._waiting, key=lambda place: place.rank)
            self._waiting.remove(place)
            self._running.add(place)
            place.begin()
