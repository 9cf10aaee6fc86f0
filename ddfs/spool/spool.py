"""All contents on this host: one fetch for each, however many ask, under however many names.

State changes happen synchronously in the event loop; what has to be written down about them
is written afterwards, by the task that owns the fetch. Nobody outside learns of a change
before it is true: a content counts as published only when its file has its name and the
catalogue has its row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.fetch.transfer import MirrorStatistics, TransferStatistics
from ddfs.model import ByteRange, PublishedFile, SpoolReference, SpoolState
from ddfs.spool import rest
from ddfs.spool.fetching import Fetch, Order, Surroundings
from ddfs.spool.queue import Queue
from ddfs.spool.reading import OpenFiles
from ddfs.spool.recovery import recovered_references

log = logging.getLogger(__name__)

# The journal of what runs has to be on disk before the process may be killed for slowness.
_SHUTDOWN_SECONDS: Final = 2.0


Explain = Callable[[str, errors.DdfsError], Awaitable[errors.DdfsError]]


@dataclass(frozen=True, slots=True)
class HoldingStatus:
    """How far a content is on this host, at one moment.

    ``bytes_here`` are verified (without piece hashes: received) bytes. ``retry_in`` is in
    seconds, None unless the content rests after ``error``. ``mirrors`` are those of the
    running fetch, or of the last one since the daemon was started.
    """

    state: SpoolState
    bytes_here: int
    bytes_per_second: float
    seconds_left: float | None
    published: PublishedFile | None
    error: str | None
    error_kind: str | None
    retry_in: float | None
    mirrors: tuple[MirrorStatistics, ...]


class _Holding:
    """What the spool knows of one content. Changed by the spool alone."""

    def __init__(self) -> None:
        self.published: PublishedFile | None = None
        self.fetch: Fetch | None = None
        self.rest: rest.Rest | None = None
        self.bytes_here = 0
        self.was_fetching = False
        # While it is purged no reader may start a fetch into files that are being deleted.
        self.is_going = False
        # Set while it makes room: when that is over it may be fetched again.
        self.evicted: trio.Event | None = None
        # How often it was used since the daemon was started.
        self.uses = 0
        self.last_error: str | None = None
        self.mirrors: tuple[MirrorStatistics, ...] = ()


class Spool:
    """Contents, their fetches, and the readers that wait for them.

    ``on_change(content_id)`` is called in the event loop whenever a state changed,
    ``on_use(content_id)`` whenever a complete content is used. ``queue`` says how many fetches
    run at once, and may be changed. Used as ``await nursery.start(spool.run)``; cancelling
    that ends all fetches, journaled, within
    two seconds.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        on_change: Callable[[str], None],
        on_use: Callable[[str], None] = lambda _content_id: None,
    ) -> None:
        self._with = surroundings
        self._on_change = on_change
        self._on_use = on_use
        self.queue = Queue()
        # Knows more of why a fetch failed; returns within seconds, and never raises.
        self.explain: Explain | None = None
        self._holdings: dict[str, _Holding] = {}
        self._files = OpenFiles()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own all fetches until cancelled. Started when what a crash left is put right."""
        references = await trio.to_thread.run_sync(
            recovered_references,
            self._with.storage,
            self._with.ledger,
            limiter=self._with.ledger_limiter,
        )
        for reference in references:
            self._holdings[reference.content_id] = _restored(reference)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._files.close()

    # -- what is where ---------------------------------------------------------------------

    def holding(self, content_id: str) -> HoldingStatus:
        """The state of a content; one that nobody asked for yet is absent."""
        holding = self._holdings.get(content_id) or _Holding()
        statistics = holding.fetch.statistics() if holding.fetch else None
        resting = holding.rest
        now = trio.current_time()
        return HoldingStatus(
            state=_state(holding),
            bytes_here=_bytes_here(holding, statistics),
            bytes_per_second=statistics.bytes_per_second if statistics else 0.0,
            seconds_left=statistics.seconds_left if statistics else None,
            published=holding.published,
            error=holding.last_error,
            error_kind=resting.error.kind() if resting and holding.last_error else None,
            retry_in=max(0.0, resting.until - now) if resting and not holding.fetch else None,
            mirrors=statistics.mirrors if statistics else holding.mirrors,
        )

    def published(self, content_id: str) -> PublishedFile | None:
        """The complete file, from memory; see :meth:`confirm_published`."""
        holding = self._holdings.get(content_id)
        return holding.published if holding and not holding.is_going else None

    def place_of(self, published_name: str) -> str:
        """Where a content of that name will stand."""
        return str(self._with.storage.path / published_name)

    def is_fetching(self, content_id: str) -> bool:
        """Whether a fetch runs."""
        holding = self._holdings.get(content_id)
        return holding is not None and holding.fetch is not None

    def was_interrupted(self, content_id: str) -> bool:
        """Whether a fetch ran when the daemon before this one ended."""
        holding = self._holdings.get(content_id)
        return holding is not None and holding.was_fetching

    def note_use(self, content_id: str) -> None:
        """A complete content is used, by a domain for instance."""
        self.note_followed(content_id)
        if self.published(content_id) is not None:
            self._on_use(content_id)

    def note_followed(self, content_id: str) -> None:
        """Somebody looks where a complete content is: to use it, or as libvirt's refresh does.

        It is not evicted on the strength of what was known before.
        """
        holding = self._holdings.get(content_id)
        if holding is not None:
            holding.uses += 1

    def uses(self, content_id: str) -> int:
        """How often it was used; who compares two answers knows whether it was in between."""
        holding = self._holdings.get(content_id)
        return holding.uses if holding else 0

    def stored(self) -> list[tuple[str, str, PublishedFile]]:
        """Every published file: content, primary storage, file."""
        return [
            (content_id, self._with.storage.name, holding.published)
            for content_id, holding in self._holdings.items()
            if holding.published is not None and not holding.is_going
        ]

    async def confirm_published(self, content_id: str) -> PublishedFile | None:
        """Look at the published file again; one that is gone or changed counts no more."""
        published = self.published(content_id)
        if published is None:
            return None
        self.note_use(content_id)
        is_intact = await trio.to_thread.run_sync(self._with.storage.is_intact, published)
        holding = self._holdings.get(content_id)
        if holding is None or holding.is_going:
            return None
        if is_intact:
            return published
        log.error("%s: the published file is gone or was changed", published.path)
        if holding.published == published:
            await self._forget_published(content_id, holding)
        return None

    # -- demand ----------------------------------------------------------------------------

    def demand(
        self,
        order: Order,
        demand: rest.Demand = rest.Demand.READER,
        seeds: Sequence[Path] = (),
    ) -> None:
        """Start a fetch, unless the content is here, on its way, or rests after a failure.

        Never raises and never blocks. One that waits its turn may come sooner for it.
        What *seeds* have of the content is not fetched, if it starts now.
        """
        holding = self._holdings.setdefault(order.content_id, _Holding())
        if holding.fetch is not None:
            holding.fetch.place.hasten(demand)
        if holding.published or holding.fetch or holding.is_going or self._nursery is None:
            return
        if holding.rest and not holding.rest.allows(trio.current_time(), demand):
            return
        holding.was_fetching = False
        holding.fetch = Fetch(order, self._with, self.queue.enter(demand), seeds)
        self._nursery.start_soon(self._own, holding, holding.fetch)
        self._on_change(order.content_id)

    async def read(self, order: Order, wanted: ByteRange) -> bytes:
        """Verified bytes of a content, waiting for them as long as a fetch runs.

        Raises the reason when the fetch fails or rests; its errno is what a reader sees.
        """
        while True:
            holding = self._holdings.setdefault(order.content_id, _Holding())
            if holding.evicted is not None:
                await holding.evicted.wait()
                continue
            if holding.published is not None and not holding.is_going:
                return await self._files.read(holding.published, wanted.start, len(wanted))
            self.demand(order)
            if holding.fetch is None:
                raise self._reason(holding)
            fetch = holding.fetch
            data = await fetch.read(wanted)
            if data is not None:
                return data
            if fetch.error is not None:
                raise fetch.error

    async def wait_published(self, order: Order) -> PublishedFile:
        """Wait until the content is published. The caller has demanded it.

        Raises the fetch's error, or why none runs.
        """
        while True:
            holding = self._holdings.setdefault(order.content_id, _Holding())
            if holding.evicted is not None:
                await holding.evicted.wait()
                self.demand(order)
                continue
            if holding.published is not None and not holding.is_going:
                return holding.published
            if holding.fetch is None:
                raise self._reason(holding)
            fetch = holding.fetch
            await fetch.ended.wait()
            if fetch.error is not None:
                raise fetch.error

    def _reason(self, holding: _Holding) -> errors.DdfsError:
        if holding.is_going:
            return errors.CancelledFetchError("it is being purged")
        if holding.rest is None:
            return errors.CancelledFetchError("the daemon is ending; try again when it is back")
        seconds = max(0.0, holding.rest.until - trio.current_time())
        return errors.FetchRestingError(
            f"{holding.rest.error}; it is tried again in {seconds:.0f} s, or at once with "
            "ddfs prefetch"
        )

    def cancel(self, content_id: str) -> bool:
        """End the fetch of a content, if one runs; what is here is kept."""
        holding = self._holdings.get(content_id)
        if holding is None or holding.fetch is None:
            return False
        holding.fetch.scope.cancel()
        return True

    async def purge(self, content_id: str) -> None:
        """Delete the published file and what is partial. The caller knows that nobody needs it."""
        holding = self._holdings.get(content_id)
        if holding is None:
            return
        if holding.fetch is not None:
            raise errors.TemplateInUseError("it is being fetched; end that with ddfs cancel")
        holding.is_going = True
        try:
            await self._delete(content_id, holding)
        finally:
            holding.is_going = False
        self._holdings.pop(content_id, None)

    async def evict(self, content_id: str, uses: int) -> bool:
        """Delete the published file to make room, unless it was used since :meth:`uses` said
        *uses*; whether it is gone. Who wants it meanwhile has it fetched again.
        """
        holding = self._holdings.get(content_id)
        if holding is None or holding.published is None or holding.fetch is not None:
            return False
        if holding.is_going or holding.uses != uses:
            return False
        holding.is_going, holding.evicted = True, trio.Event()
        # The name in the mount must not lead to a file that is gone.
        self._on_change(content_id)
        gone = False
        try:
            await self._delete(content_id, holding)
            gone = True
        finally:
            holding.is_going = False
            if gone:
                self._holdings.pop(content_id, None)
            else:
                self._on_change(content_id)
            holding.evicted.set()
            holding.evicted = None
        return True

    async def _delete(self, content_id: str, holding: _Holding) -> None:
        published = holding.published
        if published is not None:
            self._files.forget(published.path)
            await trio.to_thread.run_sync(self._with.storage.purge, published)
            await self._forget_published(content_id, holding)
        await trio.to_thread.run_sync(self._with.storage.discard, content_id)
        await trio.to_thread.run_sync(
            self._with.ledger.forget_reference,
            content_id,
            self._with.storage.name,
            limiter=self._with.ledger_limiter,
        )

    # -- the life of a fetch ---------------------------------------------------------------

    async def _own(self, holding: _Holding, fetch: Fetch) -> None:
        """Run one fetch to its end and write down how it ended."""
        content_id = fetch.order.content_id
        error: errors.DdfsError | None = errors.CancelledFetchError("the daemon is ending")
        try:
            await self._write_down(content_id, SpoolState.FETCHING, holding.bytes_here)
            published = await fetch.run()
            await self._write_down(content_id, SpoolState.PUBLISHED, published.size, published)
            holding.published = published
            self.note_use(content_id)
            error = None
        except errors.DdfsError as failure:
            error = failure
            error = await self._explained(content_id, failure)
        except Exception as bug:
            log.exception("%s: a bug ended the fetch", fetch.order.published_name)
            error = errors.StorageError(f"internal error: {type(bug).__name__}: {bug}")
        finally:
            self.queue.leave(fetch.place)
            self._conclude(holding, fetch, error)
            with trio.move_on_after(_SHUTDOWN_SECONDS) as scope:
                scope.shield = True
                await fetch.close()
                if error is None:
                    await self._discard_leftovers(content_id)
        if error is not None:
            await self._after_failure(holding, fetch, error)

    async def _explained(self, content_id: str, error: errors.DdfsError) -> errors.DdfsError:
        if self.explain is None:
            return error
        try:
            return await self.explain(content_id, error)
        except Exception:
            log.exception("a bug in explaining why a fetch failed")
            return error

    def _conclude(self, holding: _Holding, fetch: Fetch, error: errors.DdfsError | None) -> None:
        statistics = fetch.statistics()
        if statistics is not None:
            holding.mirrors = tuple(_at_rest(mirror) for mirror in statistics.mirrors)
            holding.bytes_here = statistics.bytes_verified
        holding.fetch = None
        holding.last_error = None
        if error is not None and not isinstance(error, errors.CancelledFetchError):
            holding.last_error = str(error)
        if error is None:
            holding.rest = None
        elif self._nursery is not None:
            holding.rest = rest.after_failure(holding.rest, error, trio.current_time())
        fetch.finish(error)
        self._on_change(fetch.order.content_id)

    async def _after_failure(
        self, holding: _Holding, fetch: Fetch, error: errors.DdfsError
    ) -> None:
        """Note the failure, rest, and try again unless a demand did so meanwhile."""
        name, content_id = fetch.order.published_name, fetch.order.content_id
        cancelled = isinstance(error, errors.CancelledFetchError)
        state = SpoolState.ABSENT if cancelled else SpoolState.FAILED
        try:
            await self._write_down(content_id, state, holding.bytes_here, error=holding.last_error)
        except errors.DdfsError as failure:
            log.error("%s: its failure cannot be written down: %s", name, failure)
        if cancelled:
            log.info("%s: %s", name, error)
            return
        resting = holding.rest
        log.error("%s: %s", name, error)
        if resting is None or not resting.is_tried_by_itself:
            return
        await trio.sleep_until(resting.until)
        if holding.rest is resting:
            self.demand(fetch.order, rest.Demand.RETRY)

    async def _write_down(
        self,
        content_id: str,
        state: SpoolState,
        bytes_here: int,
        published: PublishedFile | None = None,
        error: str | None = None,
    ) -> None:
        reference = SpoolReference(
            content_id, self._with.storage.name, state, bytes_here, time.time(), published, error
        )
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(
                self._with.ledger.record_reference, reference, limiter=self._with.ledger_limiter
            )

    async def _discard_leftovers(self, content_id: str) -> None:
        """The journal and the like; a failure costs a few bytes, not the template."""
        try:
            await trio.to_thread.run_sync(self._with.storage.discard, content_id)
        except errors.DdfsError as error:
            log.warning("%s", error)

    async def _forget_published(self, content_id: str, holding: _Holding) -> None:
        holding.published = None
        holding.bytes_here = 0
        self._on_change(content_id)
        await self._write_down(content_id, SpoolState.ABSENT, 0)


def _at_rest(mirror: MirrorStatistics) -> MirrorStatistics:
    """A mirror when its fetch is over: nobody is busy any more."""
    state = "idle" if mirror.state == "busy" else mirror.state
    return replace(mirror, state=state, bytes_per_second=0.0)


def _restored(reference: SpoolReference) -> _Holding:
    holding = _Holding()
    holding.published = reference.published
    holding.bytes_here = reference.bytes_here
    holding.was_fetching = reference.state is SpoolState.FETCHING
    holding.last_error = reference.last_error
    return holding


def _state(holding: _Holding) -> SpoolState:
    if holding.published is not None:
        return SpoolState.PUBLISHED
    if holding.fetch is not None:
        return SpoolState.FETCHING
    return SpoolState.FAILED if holding.last_error is not None else SpoolState.ABSENT


def _bytes_here(holding: _Holding, statistics: TransferStatistics | None) -> int:
    if holding.published is not None:
        return holding.published.size
    return statistics.bytes_verified if statistics else holding.bytes_here
