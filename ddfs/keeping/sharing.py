"""One host among those that share a primary storage: votes on what others want to delete, and
asks them about what is to be deleted from here. :mod:`ddfs.keeping.agreement` is the protocol.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from ddfs import errors
from ddfs.keeping import agreement
from ddfs.keeping.judgement import StoredFile, Uses, judge
from ddfs.keeping.looking import Look
from ddfs.model.sharing import HostRecord, Intent, UsesRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

# One listing of a directory that hardly ever changes.
POLL_SECONDS: Final = 2.0
BEAT_SECONDS: Final = 20.0
# Several beats, and a minute for which NFS may show old attributes.
SILENT_SECONDS: Final = 180.0
# What a host uses without being asked is only what others show before they ask.
LOOK_AGAIN_SECONDS: Final = 600.0
# The proposer looks for votes: the others take seconds.
_TALLY_SECONDS: Final = 0.25
# What a proposer that is cancelled still says; its daemon says the rest when it comes back.
_ENDING_SECONDS: Final = 3.0

# Each is a line in what people read; the rest is counted.
_MAX_USERS: Final = 5

# Not with what is stored here: a shared storage may hang.
_limiter = trio.CapacityLimiter(4)


class Directory(Protocol):
    """A shared primary storage; see :class:`ddfs.primary.uses.UsesDirectory`."""

    name: str
    path: Path
    host_id: str

    def register(self) -> None:
        """Make this host known."""

    def write_record(self, record: UsesRecord) -> None:
        """In place of the one before."""

    def show_life(self) -> bool:
        """Whether the others still know this host, which lives."""

    def records(self) -> list[HostRecord]:
        """Of all hosts."""

    def forget(self, host: str, /) -> None:
        """One that is gone for good."""

    def propose(self, content_id: str, file_name: str, unused_seconds: float) -> Intent:
        """A new intent."""

    def intents(self) -> list[Intent]:
        """All that are there."""

    def commit(self, intent: Intent) -> bool:
        """Whether the file may be deleted until :meth:`finish`."""

    def cancel(self, intents: Iterable[Intent], /) -> list[Intent]:
        """Those that are committed already, and not over."""

    def finish(self, intent: Intent) -> None:
        """It is over."""

    def is_over(self, token: str) -> bool:
        """Whether it was cancelled or finished."""

    def names(self) -> list[str]:
        """Of all files in it."""


class Spool(Protocol):
    """The way to use a file no more; see :class:`ddfs.spool.leaving.Leaving`."""

    def withhold(
        self, content_id: str, primary: str, uses: int | None, wanted: Callable[[str], None]
    ) -> bool:
        """Whether it is not used any more."""

    async def give_back(self, content_id: str, primary: str) -> None:
        """It may be used again, if it is there."""


@dataclass(frozen=True, slots=True)
class Consent:
    """Of all hosts, to delete a file: ``objection`` is None, and *intent* waits to be committed."""

    file: StoredFile
    intent: Intent
    objection: str | None


class Sharing:
    """On one storage. ``start`` comes before anybody can use anything, then :meth:`run`."""

    def __init__(
        self,
        directory: Directory,
        spool: Spool,
        look: Look,
        *,
        wait_seconds: float,
        host_name: str = os.uname().nodename,
    ) -> None:
        self.primary = directory.name
        self._directory = directory
        self._spool = spool
        self._look = look
        self._wait_seconds = wait_seconds
        self._member = agreement.Member()
        self._watch = agreement.Watch()
        self._record = UsesRecord(
            directory.host_id, host_name, obstacles=("it has not looked yet",)
        )
        self._written_at = self._looked_at = float("-inf")
        self._is_written = False
        # What is said and done about a content belongs together.
        self._lock = trio.Lock()
        self._turning = trio.Lock()
        self._asking = 0
        self._is_wanted: set[str] = set()
        self._returning: set[str] = set()
        self._wake = trio.Event()

    async def start(self) -> None:
        """Make this host known, and keep what an earlier daemon may have promised.

        Raises :class:`errors.StorageError`.
        """
        directory = self._directory
        await _run(directory.register)
        await _run(directory.write_record, self._record)
        intents = await _run(directory.intents)
        for content_id in self._member.come_back(intents):
            self._withhold(content_id, None)
        for intent in intents:
            # Whoever would have deleted has ended.
            if intent.host == directory.host_id:
                await _run(directory.finish, intent)

    async def run(self) -> None:
        """Vote, show that this host lives, and stop what is wanted from going, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._again_and_again, self._give_way, self._want)
            await self._again_and_again(self._turn, partial(trio.sleep, POLL_SECONDS))

    async def _again_and_again(
        self, work: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[None]]
    ) -> None:
        told = ""
        while True:
            try:
                await work()
                told = ""
                await pause()
            except errors.DdfsError as error:
                if str(error) != told:
                    log.error("%s", error)
                told = str(error)
                await trio.sleep(POLL_SECONDS)

    async def _want(self) -> None:
        await self._wake.wait()
        self._wake = trio.Event()

    # -- as one of the hosts -------------------------------------------------------------------

    async def _turn(self) -> None:
        async with self._turning:
            intents = await _run(self._directory.intents)
            await self._settle(intents)
            for intent in self._member.unpromised(intents):
                async with self._lock:
                    self._member.promise(intent)
                    self._withhold(intent.content_id, None)
            new = self._member.unanswered(intents)
            if new or time.monotonic() - self._looked_at >= LOOK_AGAIN_SECONDS:
                await self._vote(new)
            await self._beat()
            await self._sweep(intents)

    async def _beat(self) -> None:
        now = time.monotonic()
        self._watch.note(await _run(self._directory.records), now)
        if not self._is_written:
            await self._write()
        elif now - self._written_at >= BEAT_SECONDS:
            self._written_at = now
            if not await _run(self._directory.show_life):
                log.error(
                    "%s: an operator has forgotten this host, which lives: its uses count again",
                    self._directory.path,
                )
                await _run(self._directory.register)
                self._is_written = False

    async def _write(self) -> None:
        self._is_written = False
        self._record = replace(self._record, votes=self._member.votes)
        # Not abandoned: two at once would write into one file.
        await trio.to_thread.run_sync(self._directory.write_record, self._record, limiter=_limiter)
        self._is_written = True

    async def _sweep(self, intents: Sequence[Intent]) -> None:
        """End what a failure has left of ours."""
        for intent in intents:
            if intent.host == self._directory.host_id and not self._asking:
                await _run(self._directory.finish, intent)

    async def _vote(self, intents: Sequence[Intent]) -> None:
        """Look who uses what, and answer. An answer is given when it is written."""
        names = dict.fromkeys(intent.file_name for intent in intents)
        paths = [*names, *(name for name in await _run(self._directory.names) if "@" in name)]
        files = {intent.token: self._file(intent) for intent in intents}
        uses = await self._look.uses([str(self._directory.path / name) for name in paths])
        async with self._lock:
            for intent in intents:
                # The pins of now, and what was used since before the look.
                file = replace(self._file(intent), uses=files[intent.token].uses)
                [judged] = judge([file], uses, time.time(), unused_seconds=intent.unused_seconds)
                objection = judged.kept_because
                if objection is None and not self._withhold(intent.content_id, file.uses):
                    objection = "used just now"
                self._member.vote(intent, objection)
                if objection is not None and self._member.promised(intent.content_id):
                    self._wanted(intent.content_id)
            self._note(uses)
            await self._write()
        self._looked_at = time.monotonic()

    def _file(self, intent: Intent) -> StoredFile:
        path = str(self._directory.path / intent.file_name)
        return self._look.file(intent.content_id, self.primary, path)

    def _note(self, uses: Uses) -> None:
        self._record = replace(
            self._record,
            of_content={content: _shown(users) for content, users in uses.of_content.items()},
            of_file={Path(path).name: _shown(users) for path, users in uses.of_path.items()},
            obstacles=list(uses.obstacles[:1]),
        )

    def _withhold(self, content_id: str, uses: int | None) -> bool:
        return self._spool.withhold(content_id, self.primary, uses, self._wanted)

    def _wanted(self, content_id: str) -> None:
        """Somebody here wants to use what we have promised not to use."""
        self._is_wanted.add(content_id)
        self._wake.set()

    async def _give_way(self) -> None:
        """Stop the deletion of what somebody here wants; what is deleted already comes back when
        that is over.
        """
        while self._is_wanted:
            content_id = next(iter(self._is_wanted))
            async with self._lock:
                promised = self._member.promised(content_id)
                late = await _run(self._directory.cancel, promised)
                self._is_wanted.discard(content_id)
                for intent in late:
                    log.warning(
                        "%s: host %s is deleting it; if that host is gone for good: ddfs forget %s",
                        self._directory.path / intent.file_name, intent.host, intent.host,
                    )  # fmt: skip
                await self._end({i.token for i in promised} - {i.token for i in late})

    async def _settle(self, intents: Sequence[Intent]) -> None:
        """Use again what is over."""
        async with self._lock:
            unseen = self._member.unseen(intents)
            await self._end([t for t in unseen if await _run(self._directory.is_over, t)])

    async def _end(self, tokens: Iterable[str]) -> None:
        """What cannot be looked at now is given back at a later turn."""
        self._returning.update(self._member.end(list(tokens)))
        for content_id in list(self._returning):
            if not self._member.promised(content_id):
                await self._spool.give_back(content_id, self.primary)
            self._returning.discard(content_id)

    # -- as the one that wants to delete -------------------------------------------------------

    async def known(self, files: Sequence[StoredFile], *, hearsay: bool) -> list[StoredFile]:
        """*files* with what speaks for keeping them on the other hosts, without asking those: a
        silence, and with *hearsay* what they wrote down when they last looked.
        """
        try:
            records = await _run(self._directory.records)
        except errors.StorageError as error:
            return [replace(file, doubt=f"perhaps used: {error}") for file in files]
        others = [each for each in records if each.host != self._directory.host_id]
        doubt = next(filter(None, (self._doubt(each, hearsay) for each in others)), None)
        if not hearsay:
            return [replace(file, doubt=doubt) for file in files]
        return [replace(f, users_elsewhere=_users(f, others), doubt=doubt) for f in files]

    def _doubt(self, host: HostRecord, hearsay: bool) -> str | None:
        if host.record is None:
            return agreement.unreadable(host)
        silent = self._watch.silent_seconds(host.host, time.monotonic())
        if silent >= SILENT_SECONDS:
            return agreement.silent(host, silent)
        if hearsay and host.record.obstacles:
            return f"perhaps used on host {host.name}: {host.record.obstacles[0]}"
        return None

    @asynccontextmanager
    async def asked(
        self, files: Sequence[StoredFile], unused_seconds: float
    ) -> AsyncIterator[list[Consent]]:
        """What all hosts say to the deletion of *files*; the consent holds inside, unless
        somebody comes to want a file before :meth:`committed`.
        """
        intents: list[tuple[StoredFile, Intent]] = []
        self._asking += 1
        try:
            for file in files:
                question = file.content_id, Path(file.path).name, unused_seconds
                intents.append((file, await _run(self._directory.propose, *question)))
            yield await self._answers(intents)
        finally:
            with trio.move_on_after(_ENDING_SECONDS, shield=True), suppress(errors.StorageError):
                for _, intent in intents:
                    await _run(self._directory.finish, intent)
                async with self._lock:
                    await self._end([intent.token for _, intent in intents])
            self._asking -= 1

    async def _answers(self, asked: Sequence[tuple[StoredFile, Intent]]) -> list[Consent]:
        deadline = time.monotonic() + self._wait_seconds
        with trio.move_on_after(self._wait_seconds):
            await self._turn()
        while True:
            records = await _run(self._directory.records)
            tallies = [agreement.tally(intent, records) for _, intent in asked]
            if not any(tally.missing for tally in tallies):
                break
            if time.monotonic() >= deadline:
                break
            await trio.sleep(_TALLY_SECONDS)
        return [
            Consent(file, intent, self._objection(tally))
            for (file, intent), tally in zip(asked, tallies, strict=True)
        ]

    def _objection(self, tally: agreement.Tally) -> str | None:
        if tally.missing:
            return agreement.silent(tally.missing[0], self._wait_seconds)
        return tally.objection

    @asynccontextmanager
    async def committed(self, consent: Consent) -> AsyncIterator[bool]:
        """Whether the file may be deleted inside: not when somebody has come to want it."""
        # Not abandoned: whoever is not told of the yes must not have got it.
        is_agreed = await trio.to_thread.run_sync(
            self._directory.commit, consent.intent, limiter=_limiter
        )
        try:
            yield is_agreed
        finally:
            with trio.move_on_after(_ENDING_SECONDS, shield=True), suppress(errors.StorageError):
                await _run(self._directory.finish, consent.intent)

    async def absent(self) -> list[tuple[str, str]]:
        """The hosts because of which nothing is deleted, and what to do about each."""
        now = time.monotonic()
        records = await _run(self._directory.records)
        return [
            (
                f"host {each.name} does not answer, so that nothing is deleted",
                agreement.advice(each),
            )
            for each in records
            if each.record is None or self._watch.silent_seconds(each.host, now) >= SILENT_SECONDS
        ]

    # -- by hand -------------------------------------------------------------------------------

    async def forget(self, host: str) -> bool:
        """Whether *host*, by its id or its name, was known; it is no more.

        Raises :class:`errors.InvalidValueError` for this host, and for one that lives.
        """
        records = await _run(self._directory.records)
        found = [
            each
            for each in records
            if host in (each.host, each.name) and each.host != self._directory.host_id
        ]
        if not found and host in (self._directory.host_id, self._record.name):
            raise errors.InvalidValueError(f"{host} is this host, which uses {self.primary}")
        for each in found:
            seconds = self._watch.silent_seconds(each.host, time.monotonic())
            if seconds < 3 * BEAT_SECONDS:
                raise errors.InvalidValueError(
                    f"host {each.name} may live: its last sign was seen {seconds:.0f} s ago; a "
                    f"host can be forgotten after {3 * BEAT_SECONDS:.0f} s without one"
                )
            await _run(self._directory.forget, each.host)
            log.warning("%s: host %s (%s) forgotten", self._directory.path, each.name, each.host)
        return bool(found)


async def _run(function: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(
        function, *arguments, limiter=_limiter, abandon_on_cancel=True
    )


def _shown(users: Sequence[str]) -> list[str]:
    return list(users[:_MAX_USERS])


def _users(file: StoredFile, others: Iterable[HostRecord]) -> list[str]:
    name = Path(file.path).name
    return [
        f"{user} on host {each.name}"
        for each in others
        if each.record is not None
        for user in each.record.users(file.content_id, name)
    ]
