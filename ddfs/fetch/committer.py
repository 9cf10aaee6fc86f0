"""The way of verified pieces into the target's journal: in order, and none forgotten."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Final

import trio

from ddfs import errors
from ddfs.fetch.target import PieceRecord, Target

# The journal is written this often while pieces complete: what a kill costs beyond the
# pieces under way. A disk that takes long is asked less often, to be busy with that for a
# fifth of the time at most, but so often all the same.
COMMIT_SECONDS: Final = 0.05
COMMIT_SHARE: Final = 0.2
LONGEST_COMMIT_PAUSE_SECONDS: Final = 0.4


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

    async def keep_committing(self, fail: Callable[[errors.DdfsError], None]) -> None:
        """Commit again and again, until it is cancelled; *fail* is told what went wrong."""
        pause = COMMIT_SECONDS
        while True:
            await trio.sleep(pause)
            began = trio.current_time()
            try:
                await self.commit()
            except errors.HostError as error:
                fail(error)
            pause = (trio.current_time() - began) / COMMIT_SHARE
            pause = min(max(COMMIT_SECONDS, pause), LONGEST_COMMIT_PAUSE_SECONDS)

    async def forget(self, pieces: Iterable[int]) -> None:
        """Journal that these are not to be trusted."""
        async with self._lock:
            await self._target.forget(sorted(pieces))
