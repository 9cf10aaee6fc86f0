"""All contents on this host: one fetch for each, however many ask, under however many names.

State changes happen synchronously in the event loop; what has to be written down about them
is written afterwards, by the task that owns the fetch. Nobody outside learns of a change
before it is true: a content counts as published only when its file has its name and the
catalogue has its row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.model import ByteRange, PublishedFile, SpoolState
from ddfs.spool import rest
from ddfs.spool.copying import copy_content
from ddfs.spool.explain import Explain, explained
from ddfs.spool.fetching import Fetch, Order, Surroundings
from ddfs.spool.holding import Copying, Holding, HoldingStatus, at_rest
from ddfs.spool.leaving import Leaving, write_down
from ddfs.spool.ports import Storage
from ddfs.spool.queue import Queue
from ddfs.spool.reading import OpenFiles
from ddfs.spool.recovery import recovered_references

log = logging.getLogger(__name__)

# The journal of what runs has to be on disk before the process may be killed for slowness.
_SHUTDOWN_SECONDS: Final = 2.0

# To stop other hosts from deleting a file takes a rename; the hook waits meanwhile.
_WITHHELD_SECONDS: Final = 3.0


class Spool:
    """Contents, their fetches, and the readers that wait for them.

    ``on_change(content_id)`` is called in the event loop whenever a state changed,
    ``on_use(content_id)`` whenever a complete content is used. ``queue`` says how many fetches
    run at once, and may be changed. Used as ``await nursery.start(spool.run)``; cancelling
    that ends all fetches, journaled, within two seconds.

    Contents are fetched to the storage that their order names, by default to that of
    *surroundings*; *others* are further ones, and the earlier one's file is what is used of
    a content that stands on several.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        on_change: Callable[[str], None],
        on_use: Callable[[str], None] = lambda _content_id: None,
        others: Sequence[Storage] = (),
    ) -> None:
        self._with = surroundings
        self._storages = {s.name: s for s in (surroundings.storage, *others)}
        self._on_change = on_change
        self._on_use = on_use
        self.queue = Queue()
        # Knows more of why a fetch failed; returns within seconds, and never raises.
        self.explain: Explain | None = None
        # Asked before anything is published.
        self.judge = surroundings.judge
        self._holdings: dict[str, Holding] = {}
        self._files = OpenFiles()
        self._nursery: trio.Nursery | None = None
        leaving = Leaving(self._holdings, self._storages, surroundings, self._files, on_change)
        self.leaving = leaving
        self.purge, self.evict = leaving.purge, leaving.evict
        self.repairing = leaving.repairing

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own all fetches until cancelled. Started when what a crash left is put right."""
        for storage in self._storages.values():
            references = await trio.to_thread.run_sync(
                recovered_references,
                storage,
                self._with.ledger,
                limiter=self._with.ledger_limiter,
            )
            for reference in references:
                self._holding(reference.content_id).restore(storage, reference)
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
        return (self._holdings.get(content_id) or self._new_holding()).status()

    def _holding(self, content_id: str) -> Holding:
        """The one of *content_id*, made if there is none."""
        return self._holdings.setdefault(content_id, self._new_holding())

    def _new_holding(self) -> Holding:
        return Holding(tuple(self._storages), self._with.storage)

    def published(self, content_id: str) -> PublishedFile | None:
        """The complete file, from memory; see :meth:`confirm_published`."""
        holding = self._holdings.get(content_id)
        return holding.published if holding and not holding.is_going else None

    def is_stored(self, content_id: str) -> bool:
        """Whether there is a complete file of it, one that is not to be used now included."""
        return bool(self.files_of(content_id))

    def files_of(self, content_id: str) -> Sequence[PublishedFile]:
        """Its complete files on all storages, those included that are not to be used now."""
        holding = self._holdings.get(content_id)
        return tuple(holding.all_files().values()) if holding is not None else ()

    @property
    def primaries(self) -> tuple[str, ...]:
        """The storages, the preferred one first."""
        return tuple(self._storages)

    def place_of(self, published_name: str, primary: str | None = None) -> str:
        """Where a content of that name will stand."""
        return str(self._home(primary).path / published_name)

    def storage_of(self, content_id: str) -> Storage:
        """Where its published file stands, or where it is fetched to."""
        holding = self._holding(content_id)
        return self._storages[next(iter(holding.files), holding.home.name)]

    def _home(self, primary: str | None) -> Storage:
        """Where to fetch to; the default too for a storage that the settings have no more."""
        return self._storages.get(primary or "", self._with.storage)

    def is_fetching(self, content_id: str) -> bool:
        """Whether a fetch runs."""
        holding = self._holdings.get(content_id)
        return holding is not None and holding.fetch is not None

    async def wait_while_publishing(self, content_id: str) -> None:
        """Return when no fetch of it is past the judging of its bytes."""
        while (holding := self._holdings.get(content_id)) and holding.fetch is not None:
            if not holding.fetch.is_publishing:
                return
            await holding.fetch.ended.wait()

    def forget_failure(self, content_id: str) -> None:
        """What made the last fetch fail was changed: the next demand need not wait."""
        if content_id in self._holdings:
            self._holdings[content_id].rest = None

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
            holding.ask_for_withheld(content_id)

    def uses(self, content_id: str) -> int:
        """How often it was used; who compares two answers knows whether it was in between."""
        holding = self._holdings.get(content_id)
        return holding.uses if holding else 0

    def stored(self) -> list[tuple[str, str, PublishedFile]]:
        """Every published file: content, primary storage, file."""
        return [
            (content_id, primary, file)
            for content_id, holding in self._holdings.items()
            for primary, file in holding.all_files().items()
            if not holding.is_going
        ]

    async def confirm_published(self, content_id: str) -> PublishedFile | None:
        """Look at the published file again; one that is gone or changed counts no more."""
        self.note_use(content_id)
        holding = self._holdings.get(content_id)
        if holding is not None and holding.published is None and holding.withheld:
            with trio.move_on_after(_WITHHELD_SECONDS):
                await next(iter(holding.withheld.values())).ended.wait()
        while (published := self.published(content_id)) is not None:
            primary = next(iter(self._holdings[content_id].files))
            is_intact = self._storages[primary].is_intact
            intact = await trio.to_thread.run_sync(is_intact, published)
            holding = self._holdings.get(content_id)
            if holding is None or holding.is_going:
                return None
            if intact:
                return published
            log.error("%s: the published file is gone or was changed", published.path)
            if holding.files.get(primary) == published:
                await self.leaving.forget_published(content_id, holding, primary)
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
        holding = self._holding(order.content_id)
        if holding.fetch is not None:
            holding.fetch.place.hasten(demand)
        # A copy writes where a fetch would.
        is_busy = holding.fetch or holding.is_going or holding.copying or holding.withheld
        if not holding.published:
            holding.ask_for_withheld(order.content_id)
        if holding.obstacle is not None and not holding.copying:
            self._demand_later(holding, order, demand)
        if holding.published or is_busy or self._nursery is None:
            return
        if holding.rest and not holding.rest.allows(trio.current_time(), demand):
            return
        holding.was_fetching = False
        holding.home = self._home(order.primary)
        around = replace(self._with, storage=holding.home, judge=self.judge)
        holding.fetch = Fetch(order, around, self.queue.enter(demand), seeds)
        self._nursery.start_soon(self._own, holding, holding.fetch)
        self._on_change(order.content_id)

    def _demand_later(self, holding: Holding, order: Order, demand: rest.Demand) -> None:
        """Once it is known whether its file stays."""
        if holding.is_awaited or self._nursery is None:
            return
        holding.is_awaited = True

        async def wait() -> None:
            while holding.obstacle is not None:
                await holding.obstacle.wait()
            holding.is_awaited = False
            self.demand(order, demand)
            self._on_change(order.content_id)

        self._nursery.start_soon(wait)

    async def read(self, order: Order, wanted: ByteRange) -> bytes:
        """Verified bytes of a content, waiting for them as long as a fetch runs.

        Raises the reason when the fetch fails or rests; its errno is what a reader sees.
        """
        while True:
            holding = self._holding(order.content_id)
            if holding.published is not None and not holding.is_going:
                return await self._files.read(holding.published, wanted.start, len(wanted))
            if holding.obstacle is not None:
                holding.ask_for_withheld(order.content_id)
                await holding.obstacle.wait()
                continue
            self.demand(order)
            if holding.fetch is None:
                raise self._reason(holding)
            fetch = holding.fetch
            data = await fetch.read(wanted, early=order.is_readable_early)
            if data is not None:
                return data
            if fetch.error is not None:
                raise fetch.error

    async def wait_published(self, order: Order) -> PublishedFile:
        """Wait until the content is published. The caller has demanded it.

        Raises the fetch's error, or why none runs.
        """
        while True:
            holding = self._holding(order.content_id)
            if holding.published is not None and not holding.is_going:
                return holding.published
            if holding.obstacle is not None:
                await holding.obstacle.wait()
                self.demand(order)
                continue
            if holding.fetch is None:
                raise self._reason(holding)
            fetch = holding.fetch
            await fetch.ended.wait()
            if fetch.error is not None:
                raise fetch.error

    def _reason(self, holding: Holding) -> errors.DdfsError:
        if holding.is_going:
            return errors.CancelledFetchError("it is being purged")
        if holding.rest is None:
            return errors.CancelledFetchError("the daemon is ending; try again when it is back")
        return holding.rest.reason(trio.current_time())

    def cancel(self, content_id: str) -> bool:
        """End the fetch of a content, if one runs; what is here is kept."""
        holding = self._holdings.get(content_id)
        if holding is None or holding.fetch is None:
            return False
        holding.fetch.scope.cancel()
        return True

    # -- copies ----------------------------------------------------------------------------

    async def copy(self, order: Order, primary: str) -> PublishedFile:
        """Publish a content that is published already on *primary* as well.

        However many ask, it is copied once, and goes on when they leave. Raises why it
        failed; :class:`errors.NotHereYetError` when it is published nowhere.
        """
        if primary not in self._storages:
            raise errors.InvalidValueError(
                f"{primary!r} is no primary storage; the settings have {', '.join(self._storages)}"
            )
        while primary not in (holding := self._holding(order.content_id)).files:
            if holding.evicted is not None:
                await holding.evicted.wait()
                continue
            if holding.published is None or holding.is_going or self._nursery is None:
                raise errors.NotHereYetError(f"{order.published_name} has to be fetched first")
            if (withheld := holding.withheld.get(primary)) is not None:
                # It stands there; whether it stays other hosts are deciding.
                holding.ask_for_withheld(order.content_id)
                await withheld.ended.wait()
                continue
            running = holding.copying.get(primary)
            if running is None:
                running = holding.copying[primary] = Copying()
                self._nursery.start_soon(self._own_copy, holding, order, primary, running)
            await running.ended.wait()
            if running.error is not None:
                raise running.error
        return holding.files[primary]

    async def _own_copy(
        self, holding: Holding, order: Order, primary: str, running: Copying
    ) -> None:
        source = holding.published
        assert source is not None
        running.error = errors.CancelledFetchError("the daemon is ending")
        try:
            storage = self._storages[primary]
            file = await copy_content(order, source, storage, self._with)
            content_id = order.content_id
            await write_down(self._with, storage, content_id, SpoolState.PUBLISHED, file.size, file)
            holding.put(primary, file)
            await self._discard_leftovers(storage, content_id)
            running.error = None
        except errors.DdfsError as error:
            running.error = error
            log.error("%s: not copied to %s: %s", order.published_name, primary, error)
        except Exception as bug:
            # The fetches of other contents go on.
            log.exception("%s: a bug ended its copying to %s", order.published_name, primary)
            running.error = errors.StorageError(f"internal error: {type(bug).__name__}: {bug}")
        finally:
            del holding.copying[primary]
            running.ended.set()
            self._on_change(order.content_id)

    # -- the life of a fetch ---------------------------------------------------------------

    async def _own(self, holding: Holding, fetch: Fetch) -> None:
        """Run one fetch to its end and write down how it ended."""
        content_id, home = fetch.order.content_id, holding.home
        error: errors.DdfsError | None = errors.CancelledFetchError("the daemon is ending")
        try:
            await write_down(self._with, home, content_id, SpoolState.FETCHING, holding.bytes_here)
            published = await fetch.run()
            await write_down(
                self._with, home, content_id, SpoolState.PUBLISHED, published.size, published
            )
            holding.put(home.name, published)
            self.note_use(content_id)
            error = None
        except errors.DdfsError as failure:
            # As it was, for whoever is told when the asking is cancelled.
            error = failure
            error = await explained(self.explain, content_id, failure)
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
                    await self._discard_leftovers(home, content_id)
        if error is not None:
            await self._after_failure(holding, fetch, error, home)

    def _conclude(self, holding: Holding, fetch: Fetch, error: errors.DdfsError | None) -> None:
        statistics = fetch.statistics()
        if statistics is not None:
            holding.mirrors = tuple(at_rest(mirror) for mirror in statistics.mirrors)
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
        self, holding: Holding, fetch: Fetch, error: errors.DdfsError, home: Storage
    ) -> None:
        """Note the failure on *home*, rest, and try again unless a demand did so meanwhile."""
        name, content_id = fetch.order.published_name, fetch.order.content_id
        # Also by the removal of the last template that has it.
        cancelled = isinstance(error, errors.CancelledFetchError | errors.UnknownTemplateError)
        state = SpoolState.ABSENT if cancelled else SpoolState.FAILED
        try:
            # Of the next fetch to the same place it is already written that it runs.
            if holding.fetch is None or holding.home is not home:
                await write_down(
                    self._with,
                    home,
                    content_id,
                    state,
                    holding.bytes_here,
                    error=holding.last_error,
                )
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

    async def _discard_leftovers(self, storage: Storage, content_id: str) -> None:
        """The journal and the like; a failure costs a few bytes, not the template."""
        try:
            await trio.to_thread.run_sync(storage.discard, content_id)
        except errors.DdfsError as error:
            log.warning("%s", error)
