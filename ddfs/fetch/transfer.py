"""Runs one fetch: the trio shell around the scheduler, and the only one that touches it.

Tasks: one that keeps time (takes in what arrived, asks the scheduler, carries out its
actions), one for each run in progress, one that commits to the journal, one that sees the
whole thing through (:mod:`whole`). None of them raises what a person
should see: the first such error ends the others and is raised by :meth:`Transfer.run`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterable
from typing import Final

import trio

from ddfs import errors
from ddfs.fetch.access import Grants, Terms, may_leave_tls
from ddfs.fetch.arrivals import Arrival, Arrivals, hash_apart
from ddfs.fetch.blame import UNKNOWN, Plan
from ddfs.fetch.committer import Committer
from ddfs.fetch.events import (
    FetchEvent,
    MirrorBlamed,
    MirrorFailed,
    PieceRejected,
    PieceVerified,
)
from ddfs.fetch.explain import explain
from ddfs.fetch.figures import figures
from ddfs.fetch.gate import Gate, places
from ddfs.fetch.identity import Identity
from ddfs.fetch.lanes import MAX_LANES
from ddfs.fetch.mirrors import MAX_JITTER, in_order
from ddfs.fetch.pieces import HELD
from ddfs.fetch.runs import Action, Ask, Blame, Cancel, Extend, Recheck, Trim
from ddfs.fetch.scheduler import Scheduler
from ddfs.fetch.segment import Segment
from ddfs.fetch.statistics import MirrorStatistics, TransferReport, TransferStatistics
from ddfs.fetch.target import PieceRecord, Target
from ddfs.fetch.transport import Route, Transport
from ddfs.fetch.verify import hash_range
from ddfs.fetch.whole import WholeFile
from ddfs.model import ByteRange, HashAlgorithm, Manifest, MiB, Mirror

__all__ = [
    "MirrorStatistics",
    "PieceRecord",
    "Target",
    "Transfer",
    "TransferReport",
    "TransferStatistics",
]

_log = logging.getLogger(__name__)

# How often progress is taken in and silence noticed.
TICK_SECONDS: Final = 0.05
# At the start, while mirrors are measured, and near the end, while work is moved between
# them, a tick late is felt: of 5 s over fifteen mirrors 1 %.
QUICK_TICK_SECONDS: Final = 0.02
QUICK_FOR_SECONDS: Final = 1.0

# What a cancelled fetch may take to make durable what it has.
LAST_COMMIT_SECONDS: Final = 1.5

# The whole-file hash waits for the front of the file. When this much lies behind the hole
# in front, the hole is fetched next: hashing it all at the end would be felt.
FOLLOW_BYTES: Final = 192 * MiB

# Without piece hashes our own of each piece tell a liar from a broken disk. Above this rate
# they would be felt (0.7 s of a core a GiB), and are made only if the whole file is wrong.
OWN_HASH_BYTES_PER_SECOND: Final = 150 * MiB

# One round of decisions leads to the next, but not for ever.
_MAX_ROUNDS: Final = 10_000


class Transfer:
    """One fetch of one content into one target; made and run in one event loop, once."""

    def __init__(
        self,
        manifest: Manifest,
        target: Target,
        transport: Transport,
        *,
        observer: Callable[[FetchEvent], None],
        location: str | None = None,
        grants: Grants | None = None,
    ) -> None:
        """Mirrors at *location* (ISO 3166-1 alpha-2, lower case) are tried first; *grants* are
        with what each origin is asked.
        """
        self._manifest = manifest
        self._target = target
        self._transport = transport
        self.observe = observer
        self._grid = manifest.grid
        self._pieces = manifest.pieces
        self._algorithm = manifest.pieces.algorithm if manifest.pieces else HashAlgorithm.SHA256
        self._mirrors = in_order(manifest.mirrors, location)
        self._pace = transport.pace()
        lanes = min(MAX_LANES, transport.turns.limit)
        jitter = MAX_JITTER * random.random()  # noqa: S311 (no secret: it spreads hosts)
        count = len(self._mirrors)
        self._scheduler = Scheduler(self._grid, count, lanes=lanes, jitter=jitter)
        # One for each connection, since each follows redirects by itself.
        owners = [self._scheduler.owner(m.index) for m in self._scheduler.mirrors]
        self._routes = _routes([self._mirrors[owner] for owner in owners], manifest, grants)
        self._identities = [Identity() for _ in self._mirrors]
        states, room = self._scheduler.table.states, transport.hot_room
        self._whole = WholeFile(manifest, target, states, self, room)
        hashes_apart = manifest.pieces is not None and not self._whole.hashes_pieces
        # Pieces that are hashed with their file have to come in order: one at a time.
        decrypts = not manifest.pieces and any(m.url.startswith("https:") for m in self._mirrors)
        self._gate = Gate(places(hashes=hashes_apart, decrypts=decrypts))
        self._segments: dict[int, tuple[int, Segment]] = {}
        self._received = [0] * len(self._mirrors)
        self._arrivals = Arrivals()
        self._checking: dict[int, tuple[int, bytes]] = {}
        self._committer = Committer(target)
        self.commit = self._committer.commit
        self._resumed = 0
        self._now = 0.0
        self._error: errors.DdfsError | None = None
        self._nursery: trio.Nursery | None = None
        self._wakeup = trio.Event()
        self._complete = trio.Event()

    # -- for readers and the curious ------------------------------------------------

    def want(self, wanted: ByteRange) -> None:
        """A reader waits for these bytes: they are fetched next.

        Synchronous, from the fetch's event loop, at any time; what is here costs nothing.
        """
        pieces = self._grid.pieces_under(wanted)
        self._scheduler.want(pieces.start, pieces.stop)
        for _, segment in self._segments.values():
            if segment.position < wanted.end and wanted.start < segment.limit:
                segment.is_urgent = True
        self._wakeup.set()

    def is_verified(self, wanted: ByteRange) -> bool:
        """Whether these bytes are in the file and match the document's piece hashes.

        Always False where the document has none: readers then wait for the whole file.
        """
        states = self._scheduler.table.states
        return self._pieces is not None and all(
            states[piece] == HELD for piece in self._grid.pieces_under(wanted)
        )

    def statistics(self) -> TransferStatistics:
        """The figures of this moment. Cheap enough to be asked ten times a second."""
        segments = self._segments.values()
        return figures(
            self._scheduler, self._mirrors, segments, self._received, self._resumed, self._now
        )

    # -- the run --------------------------------------------------------------------

    async def run(self) -> TransferReport:
        """Fetch until every piece and every decisive whole-file digest of the manifest holds.

        Decisive are all strong digests, and where none is strong, the others. On return
        every piece is committed to the target's journal.

        Raises :class:`errors.MirrorsExhaustedError` with the failure of each mirror,
        :class:`errors.ChecksumError` when the bytes stay wrong, :class:`errors.StorageError`
        and :class:`errors.StorageFullError`. After those and after a cancellation nothing
        writes into the file any more, and what had arrived is committed, within 1.5 s.
        """
        started = trio.current_time()
        self._resume()
        self._begin(started)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._keep_time)
                self._committer.start(nursery, self._fail, notes=self._pieces is None)
                nursery.start_soon(self._see_through)
        finally:
            self._nursery = None
            self._take_arrivals()
            self._whole.hot.close()
            with trio.move_on_after(LAST_COMMIT_SECONDS, shield=True):
                await self._commit_the_last()
        if self._error is not None:
            raise self._error
        return TransferReport(
            size=self._grid.size,
            seconds=trio.current_time() - started,
            bytes_resumed=self._resumed,
            comparisons=self._whole.comparisons,
            statistics=self.statistics(),
        )

    def _resume(self) -> None:
        """Take over what earlier runs had committed."""
        index = {mirror.url: at for at, mirror in enumerate(self._mirrors)}
        self._journaled: set[int] = set()
        for record in self._target.journaled():
            if not 0 <= record.piece < self._grid.count:
                continue
            if self._pieces is None:
                if len(record.sha256) not in (0, HashAlgorithm.SHA256.digest_size):
                    continue
                sender = index.get(record.mirror_url, UNKNOWN)
                self._whole.received(record.piece, sender, record.sha256)
            self._journaled.add(record.piece)

    def _begin(self, now: float) -> None:
        self._scheduler.begin(sorted(self._journaled), now)
        self._resumed = self._scheduler.table.held_bytes
        self._whole.advance()

    async def _see_through(self) -> None:
        """From the first byte to the last comparison."""
        try:
            await self._whole.see_through()
        except errors.DdfsError as error:
            self._fail(error)
        self._stop()

    def _fail(self, error: errors.DdfsError) -> None:
        """End the fetch with *error*, unless another one was first."""
        if self._error is None:
            self._error = error
        self._stop()

    def _stop(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    # -- time, arrivals, actions ----------------------------------------------------

    async def _keep_time(self) -> None:
        """Take in what arrives as it does, and look at everything at every tick."""
        next_tick = trio.current_time()
        quick_until = next_tick + QUICK_FOR_SECONDS
        while True:
            with trio.move_on_at(next_tick):
                await self._wakeup.wait()
            self._wakeup = trio.Event()
            self._take_arrivals()
            now = self._now = trio.current_time()
            if now >= next_tick:
                left = self._scheduler.seconds_left()
                is_quick = now < quick_until or (left is not None and left < QUICK_FOR_SECONDS)
                next_tick = now + (QUICK_TICK_SECONDS if is_quick else TICK_SECONDS)
                self._take_progress(now)
                self._hurry_front()
            self._act()

    def _take_arrivals(self) -> None:
        for arrival in self._arrivals.collect():
            if arrival.digest is not None:
                self._take_ready(arrival.run)
            elif not self._whole.follow(arrival) and self._nursery is not None:
                self._start(self._hash_apart, arrival)

    async def _hash_apart(self, arrival: Arrival) -> None:
        """A piece that its thread left unhashed, and that the whole-file hash is not at."""
        try:
            await hash_apart(arrival, self._target.fd, self._grid, self._algorithm)
        except errors.HostError as error:
            self._fail(error)
        else:
            self.hashed(arrival)

    def hashed(self, arrival: Arrival) -> None:
        """The digest of *arrival* was made."""
        self._take_ready(arrival.run)
        self._wakeup.set()

    def _take_ready(self, run: int) -> None:
        for arrival in self._arrivals.ready(run):
            self._take_piece(arrival)

    def _take_piece(self, arrival: Arrival) -> None:
        run, piece, digest = arrival.run, arrival.piece, arrival.digest or b""
        mirror = self._scheduler.owner(self._scheduler.runs[run].mirror)
        matches = self._pieces is None or digest == self._pieces[piece]
        held = self._scheduler.piece_arrived(
            run, piece, trio.current_time(), matches=matches, digest=digest
        )
        self._whole.arrived(piece, arrival.buffer, is_held=held)
        if not matches:
            self.observe(PieceRejected(piece, self._mirrors[mirror].url))
        elif held:
            self._keep(piece, mirror, digest)
        else:
            self._checking[piece] = (mirror, digest)

    def _keep(self, piece: int, mirror: int, digest: bytes) -> None:
        """The piece is in the file: remember who sent it, and tell who waits."""
        self.record(piece, mirror, b"" if self._pieces is not None else digest)
        if self._pieces is not None:
            self.observe(PieceVerified(piece))
        else:
            self._refetch(self._whole.received(piece, mirror, digest))
        self._whole.advance()

    def _take_progress(self, now: float) -> None:
        for run, (_, segment) in self._segments.items():
            if segment.begun is not None:
                self._scheduler.began_earlier(run, *segment.begun)
                segment.begun = None
            self._scheduler.progressed(run, segment.position, now)
            segment.leaves_hot_pieces = self._leaves_hot_pieces()
            if segment.is_held_back:
                self._scheduler.held_back(run, now)
            if segment.ignores_ranges:
                self._scheduler.found_rangeless(run)

    def _hurry_front(self) -> None:
        front = self._whole.front
        behind = self._scheduler.table.held_bytes - front * self._grid.piece_length
        if self._whole.digests and behind > FOLLOW_BYTES:
            self._scheduler.want(front, front + 1, urgent=False)

    def _act(self) -> None:
        """Carry out what the scheduler decides, until it has nothing more."""
        for _ in range(_MAX_ROUNDS):
            actions = self._scheduler.decide(trio.current_time())
            for action in actions:
                self._do(action)
            if not actions:
                break
        else:
            raise RuntimeError("the scheduler does not come to an end")
        if self._scheduler.is_complete:
            self._complete.set()
        elif self._scheduler.verdict is not None:
            self._fail(explain(self._scheduler, self._manifest.name, self._mirrors))

    def _do(self, action: Action) -> None:
        match action:
            case Ask():
                self._ask(action)
            case Trim(run, end):
                self._scheduler.trimmed(run, self._segments[run][1].lower_limit(end))
            case Extend(run, end):
                self._segments[run][1].raise_limit(end)
            case Cancel(run):
                self._segments[run][1].abort()
            case Recheck(piece):
                self._start(self._recheck, piece)
            case Blame(mirror, reason):
                self.observe(MirrorBlamed(self._mirrors[mirror].url, reason))

    def _start(self, function: Callable[..., object], *arguments: object) -> None:
        if self._nursery is None:
            raise RuntimeError("the fetch does not run")
        self._nursery.start_soon(function, *arguments)  # type: ignore[arg-type]

    # -- runs -----------------------------------------------------------------------

    def _ask(self, ask: Ask) -> None:
        token = trio.lowlevel.current_trio_token()

        def on_piece(piece: int, digest: bytes | None, kept: bytearray | None) -> None:
            self._arrivals.put(Arrival(ask.run, piece, digest, kept))
            token.run_sync_soon(self._wake, idempotent=True)

        algorithm = self._algorithm if self._is_hashing() else None
        fd, grid, hot = self._target.fd, self._grid, self._whole.hot
        segment = Segment(fd, grid, algorithm, ask.first, ask.end, on_piece, hot)
        segment.pace, segment.gate = self._pace, self._gate
        segment.is_urgent = self._scheduler.runs[ask.run].wanted is not None
        owner = self._scheduler.owner(ask.mirror)
        segment.identity = self._identities[owner]
        segment.is_checked_by_piece = self._pieces is not None
        segment.leaves_hot_pieces = self._leaves_hot_pieces()
        self._segments[ask.run] = (owner, segment)
        self._start(self._fetch, ask, segment)

    def _is_hashing(self) -> bool:
        return (
            self._pieces is not None
            or self._whole.is_repairing
            or self._scheduler.rate < OWN_HASH_BYTES_PER_SECOND
        )

    def _leaves_hot_pieces(self) -> bool:
        """Whether this host is what limits the fetch: then two hashes are made as one."""
        is_fast = self._scheduler.rate >= OWN_HASH_BYTES_PER_SECOND
        return is_fast and self._whole.hashes_pieces

    def _wake(self) -> None:
        self._wakeup.set()

    async def _fetch(self, ask: Ask, segment: Segment) -> None:
        """One run, from its request to its end."""
        try:
            failure = await self._transport.fetch(segment, self._routes[ask.mirror])
        except errors.HostError as error:
            self._fail(error)
            return
        finally:
            segment.close()
        self._take_arrivals()
        await self._arrivals.wait_for(ask.run)
        now = trio.current_time()
        del self._segments[ask.run]
        owner = self._scheduler.owner(ask.mirror)
        self._received[owner] += segment.received
        self._scheduler.progressed(ask.run, segment.position, now)
        standing = self._scheduler.mirrors[owner]
        message = self._scheduler.runs[ask.run].cancelled_for
        self._scheduler.run_ended(ask.run, now, failure)
        message = failure.message if failure is not None else message
        if message is not None:
            url = self._mirrors[owner].url
            failed = errors.MirrorError(url, message)
            self.observe(MirrorFailed(url, failed, is_final=standing.out is not None))
        self._act()

    async def _recheck(self, piece: int) -> None:
        """Several mirrors wrote into the piece: only what is in the file counts."""
        mirror, digest = self._checking.pop(piece)
        try:
            made = await hash_range(self._target.fd, self._grid.bytes_of(piece), self._algorithm)
        except errors.HostError as error:
            self._fail(error)
            return
        # Not hashed as it came: it is here, and nobody can say by whom.
        matches = made == digest or not digest
        if self._scheduler.rechecked(piece, matches=matches, mirror=mirror):
            self._keep(piece, mirror if digest else UNKNOWN, made)
        self._act()

    # -- journal --------------------------------------------------------------------

    async def _commit_the_last(self) -> None:
        try:
            await self._committer.commit()
        except errors.HostError as error:
            if self._error is None:
                _log.warning("what had arrived could not be journaled: %s", error)

    # -- for the whole file ---------------------------------------------------------

    async def wait_complete(self) -> None:
        """Until every piece is held and nothing writes any more."""
        if not self._scheduler.is_complete:
            self._complete = trio.Event()
            self._wakeup.set()
            await self._complete.wait()

    async def fetch_again(self, plan: Plan) -> None:
        """Fetch pieces again, each not from the mirrors that the plan names; do not wait."""
        await self._committer.forget(plan)
        self._refetch(plan)

    async def forget(self, pieces: Collection[int]) -> None:
        """Held pieces are about to be replaced: the journal vouches for them no more."""
        self._committer.drop(pieces)
        await self._committer.forget(pieces)

    def record(self, piece: int, mirror: int, digest: bytes) -> None:
        """*piece* is in the file as *mirror* sent it."""
        url = self._mirrors[mirror].url if mirror != UNKNOWN else ""
        self._committer.add(PieceRecord(piece, url, digest))

    async def start_over(self) -> None:
        """Let the journal vouch for nothing: the next fetch begins with an empty file."""
        await self.forget(range(self._grid.count))

    def url(self, mirror: int) -> str:
        """The address of *mirror*."""
        return self._mirrors[mirror].url

    def usable(self) -> list[int]:
        """The mirrors that are not out, without those that do not answer if others do."""
        return self._scheduler.witnesses()

    def blame(self, mirror: int, reason: str) -> None:
        """*mirror* was proved to send wrong bytes."""
        self._scheduler.blame(mirror, reason)
        self._act()

    def _refetch(self, plan: Plan) -> None:
        if not plan:
            return
        self._committer.drop(plan)
        for piece, not_from in plan.items():
            self._scheduler.fetch_again(piece, not_from)
        self._whole.reopened(plan)
        self._wakeup.set()


def _routes(mirrors: Iterable[Mirror], manifest: Manifest, grants: Grants | None) -> list[Route]:
    granted = grants or Grants()
    may_leave = may_leave_tls(granted, manifest)
    return [Route(m.url, Terms(granted, m.named_from, may_leave)) for m in mirrors]
