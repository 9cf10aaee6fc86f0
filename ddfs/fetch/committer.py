"""The way of verified pieces into the target's journal: in order, and none forgotten."""

from __future__ import annotations

import contextlib
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

# What is noted waits for no disk, and a piece at a time would keep a thread busy.
NOTE_SECONDS: Final = 0.01


class Committer:
    """Records that are not durable yet. Errors are the target's."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._waiting: list[PieceRecord] = []
        # One at a time: of two commits that know the same piece, the later one has to win.
        self._lock = trio.Lock()
        # The same for notes: none may come after its piece was forgotten.
        self._note_lock = trio.Lock()
        self._unnoted: list[PieceRecord] | None = None
        self._added = trio.Event()

    def add(self, record: PieceRecord) -> None:
        """The piece is in the file: journal it with the next commit."""
        self._waiting.append(record)
        if self._unnoted is not None:
            self._unnoted.append(record)
            self._added.set()

    def drop(self, pieces: Container[int]) -> None:
        """Do not journal these: they are fetched again."""
        self._waiting = [record for record in self._waiting if record.piece not in pieces]
        if self._unnoted is not None:
            self._unnoted = [record for record in self._unnoted if record.piece not in pieces]

    async def commit(self) -> None:
        """Make all records durable. After failure or cancellation they wait for the next time."""
        async with self._lock:
            records = list(self._waiting)
            if records:
                await self._target.commit(records)
                # Meanwhile others may have been added, and some dropped.
                done = set(map(id, records))
                self._waiting = [record for record in self._waiting if id(record) not in done]

    def start(
        self, nursery: trio.Nursery, fail: Callable[[errors.DdfsError], None], *, notes: bool
    ) -> None:
        """Commit in *nursery*, and note if *notes*, until that is cancelled."""
        nursery.start_soon(self._keep_committing, fail)
        if notes:
            nursery.start_soon(self._keep_noting)

    async def _keep_committing(self, fail: Callable[[errors.DdfsError], None]) -> None:
        """Commit again and again; *fail* is told what went wrong."""
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

    async def _keep_noting(self) -> None:
        """Note what is added at once: a kill between two commits, which a slow disk keeps far
        apart, then costs none of it. What a full disk does not take is left to the next commit,
        which says so.
        """
        self._unnoted = list(self._waiting)
        while True:
            await self._added.wait()
            self._added = trio.Event()
            async with self._note_lock:
                records, self._unnoted = self._unnoted, []
                with contextlib.suppress(errors.HostError):
                    await self._target.note(records)
            await trio.sleep(NOTE_SECONDS)

    async def forget(self, pieces: Iterable[int]) -> None:
        """Journal that these are not to be trusted."""
        async with self._lock, self._note_lock:
            await self._target.forget(sorted(pieces))
