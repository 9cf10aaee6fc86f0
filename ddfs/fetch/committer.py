"""The way of verified pieces into the target's journal: in order, and none forgotten."""

from __future__ import annotations

from collections.abc import Container, Iterable

import trio

from ddfs.fetch.target import PieceRecord, Target


class Committer:
    """Records that are not durable yet. Errors are the target's."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._waiting: list[PieceRecord] = []
        # One at a time: of two commits that know the same piece, the later one has to win.
        self._lock = trio.Lock()

    def add(self, record: PieceRecord) -> None:
        """The piece is in the file: journal it with the next commit."""
        self._waiting.append(record)

    def drop(self, pieces: Container[int]) -> None:
        """Do not journal these: they are fetched again."""
        self._waiting = [record for record in self._waiting if record.piece not in pieces]

    async def commit(self) -> None:
        """Make all records durable. After failure or cancellation they wait for the next time."""
        async with self._lock:
            records = list(self._waiting)
            if records:
                await self._target.commit(records)
                # Meanwhile others may have been added, and some dropped.
                done = set(map(id, records))
                self._waiting = [record for record in self._waiting if id(record) not in done]

    async def forget(self, pieces: Iterable[int]) -> None:
        """Journal that these are not to be trusted."""
        async with self._lock:
            await self._target.forget(sorted(pieces))
