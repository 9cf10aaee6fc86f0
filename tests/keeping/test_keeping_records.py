"""Uses on their way to the catalogue: none is lost while it can still be written."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from ddfs import errors
from ddfs.keeping import records
from ddfs.keeping.records import Records


@dataclass(eq=False)
class Tables:
    """A catalogue in memory that can take its time, or be damaged."""

    uses: dict[str, float] = field(default_factory=dict)
    is_damaged: bool = False
    began: threading.Event = field(default_factory=threading.Event)

    def pinned(self) -> set[int]:
        return set()

    def pin(self, row: int) -> None:
        raise NotImplementedError

    def unpin(self, row: int) -> None:
        raise NotImplementedError

    def last_uses(self) -> dict[str, float]:
        return {}

    def record_uses(self, uses: Mapping[str, float]) -> None:
        self.began.set()
        if self.is_damaged:
            raise errors.CatalogueError("damaged")
        self.uses.update(uses)


async def test_uses_that_wait_for_the_catalogue_are_written_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "_FLUSH_SECONDS", 0.0)
    tables, limiter = Tables(), trio.CapacityLimiter(1)
    kept = Records(tables, limiter, clock=lambda: 7.0)
    kept.note_use("a")
    # Somebody else writes into the catalogue, and the daemon is ended meanwhile.
    await limiter.acquire_on_behalf_of(tables)
    daemon = trio.CancelScope()

    async def run() -> None:
        with daemon:
            await kept.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        assert limiter.statistics().tasks_waiting == 1
        daemon.cancel()
        await trio.testing.wait_all_tasks_blocked()
        limiter.release_on_behalf_of(tables)
    assert tables.uses == {"a": 7.0}


async def test_uses_that_could_not_be_written_are_written_later() -> None:
    tables, now = Tables(is_damaged=True), [1.0]
    kept = Records(tables, trio.CapacityLimiter(1), clock=lambda: now[0])
    kept.note_use("a")
    await kept._flush()
    now[0] = 2.0
    kept.note_use("b")
    tables.is_damaged = False
    await kept._flush()
    assert tables.uses == {"a": 1.0, "b": 2.0}
    tables.began.clear()
    await kept._flush()
    assert not tables.began.is_set()
