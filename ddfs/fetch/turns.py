"""Connections to one server, counted over all fetches: who is beyond the limit waits its turn.

A server is a name and a port, after redirects: that is what sees the connections.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from ddfs.fetch.address import Address
from ddfs.fetch.segment import Segment

# Browsers keep to 6 for one page; servers of mirror networks refuse from 20 to 50 on.
CONNECTIONS_PER_HOST: Final = 16


class Turns:
    """One limiter for each server that is being used; in the event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._servers: dict[tuple[str, int], trio.CapacityLimiter] = {}

    @property
    def limit(self) -> int:
        """How many connections one server gets."""
        return self._limit

    def change(self, limit: int) -> None:
        """Another limit, at once; connections in use beyond it end by themselves."""
        self._limit = limit
        for limiter in self._servers.values():
            limiter.total_tokens = limit

    @asynccontextmanager
    async def turn(self, segment: Segment, address: Address) -> AsyncIterator[None]:
        """Hold a connection's place; aborting *segment* ends the wait, at its own request.

        Who waits is marked as held back, so that the wait is not counted as the mirror's.
        """
        key = (address.host, address.port)
        limiter = self._servers.get(key)
        if limiter is None:
            limiter = self._servers[key] = trio.CapacityLimiter(self._limit)
        # Not the segment: of the same one, two attempts may overlap while one ends.
        place = object()
        try:
            await self._acquire(limiter, place, segment)
            yield
        finally:
            if place in limiter.statistics().borrowers:
                limiter.release_on_behalf_of(place)
            statistics = limiter.statistics()
            if not statistics.borrowed_tokens and not statistics.tasks_waiting:
                self._servers.pop(key, None)

    @staticmethod
    async def _acquire(limiter: trio.CapacityLimiter, place: object, segment: Segment) -> None:
        try:
            limiter.acquire_on_behalf_of_nowait(place)
        except trio.WouldBlock:
            segment.is_held_back = True
            try:
                with trio.CancelScope() as scope, segment.aborting(scope.cancel):
                    await limiter.acquire_on_behalf_of(place)
            finally:
                segment.is_held_back = False
