"""Pins and last uses: in memory for who decides, in the catalogue for the next daemon."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import trio

from ddfs import errors

log = logging.getLogger(__name__)

# A use costs no write of its own; a crash forgets the uses of so long, and a file looks a
# little older than it is.
_FLUSH_SECONDS: Final = 30.0
_ENDING_SECONDS: Final = 1.0


class Tables(Protocol):
    """Where pins and uses are written down. Blocks; called in a thread."""

    def pinned(self) -> set[int]:
        """The rows of the templates that are pinned."""

    def pin(self, row: int) -> None:
        """Pin one."""

    def unpin(self, row: int) -> None:
        """Unpin one."""

    def last_uses(self) -> dict[str, float]:
        """When each content was last used."""

    def record_uses(self, uses: Mapping[str, float]) -> None:
        """Write uses down."""


class Records:
    """In the event loop. ``load`` comes first; ``run`` is the task that writes uses down."""

    def __init__(
        self,
        tables: Tables,
        limiter: trio.CapacityLimiter,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tables = tables
        self._limiter = limiter
        self._clock = clock
        self._pinned: set[int] = set()
        self._uses: dict[str, float] = {}
        self._unwritten: dict[str, float] = {}

    async def load(self) -> None:
        """Read everything; raises :class:`errors.CatalogueError`."""
        self._pinned = await trio.to_thread.run_sync(self._tables.pinned, limiter=self._limiter)
        self._uses = await trio.to_thread.run_sync(self._tables.last_uses, limiter=self._limiter)

    def is_pinned(self, row: int) -> bool:
        """Whether the template of *row* is pinned."""
        return row in self._pinned

    def last_used_at(self, content_id: str) -> float:
        """In POSIX seconds, 0 for never."""
        return self._uses.get(content_id, 0.0)

    def note_use(self, content_id: str) -> None:
        """It is used now. Never blocks; on disk within half a minute."""
        self._uses[content_id] = self._unwritten[content_id] = self._clock()

    async def set_pinned(self, row: int, pinned: bool) -> None:
        """Pin or unpin; durable when it returns. In force at once where it protects."""
        if pinned:
            self._pinned.add(row)
        change = self._tables.pin if pinned else self._tables.unpin
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(change, row, limiter=self._limiter)
        if not pinned:
            self._pinned.discard(row)

    async def run(self) -> None:
        """Write uses down until cancelled, and once more then."""
        try:
            while True:
                await trio.sleep(_FLUSH_SECONDS)
                await self._flush()
        finally:
            with trio.move_on_after(_ENDING_SECONDS) as scope:
                scope.shield = True
                await self._flush()

    async def _flush(self) -> None:
        uses = dict(self._unwritten)
        if not uses:
            return
        try:
            await trio.to_thread.run_sync(self._tables.record_uses, uses, limiter=self._limiter)
        except errors.CatalogueError as error:
            log.warning("uses cannot be written down: %s", error)
            return
        self._unwritten = {c: at for c, at in self._unwritten.items() if uses.get(c) != at}
