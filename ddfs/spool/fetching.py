"""One fetch of one content: from the first byte to the published file.

Runs a :class:`ddfs.fetch.transfer.Transfer` into a partial file, lets readers in as pieces
are verified, has the image inspected, and publishes. The order that keeps the promises:

* no reader gets a byte before the verified head has passed the inspector;
* the space is reserved before the first byte;
* a content that already stands in primary storage under its name is adopted by its hash,
  and a file of that name with other bytes is refused before anything is downloaded;
* the reference is written after the file has its name (:mod:`ddfs.spool.recovery` mends
  what a crash leaves between the two).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.fetch import events
from ddfs.fetch.access import Grants
from ddfs.fetch.transfer import Transfer, TransferStatistics
from ddfs.model import HEAD_LENGTH, ByteRange, Grid, ImageFormat, Manifest, PublishedFile
from ddfs.spool import pin, reading
from ddfs.spool.partial import PartialFile, storage_errors
from ddfs.spool.publishing import publish
from ddfs.spool.queue import Place
from ddfs.spool.regain import regain
from ddfs.spool.room import adopt, reserve
from ddfs.spool.seed import plant
from ddfs.spool.standing import FILES, find_standing, say
from ddfs.spool.surroundings import Surroundings
from ddfs.spool.unpacking import room_for, unpack

__all__ = ["CLAIM_SECONDS", "Fetch", "Order", "Surroundings"]

log = logging.getLogger(__name__)

# Readers of a partial file wait for its disk only, never for a network. Who is not done by
# then closes it himself.
_READERS_LEAVE_SECONDS: Final = 2.0

# How often a host that shares the storage asks whether another has ended its fetch.
CLAIM_SECONDS: Final = 1.0

# Who fetches it, where that is not known.
_ANOTHER_HOST: Final = "another host"

# In the place of a piece number: what a reader waits for who cannot be let in yet.
_ANY: Final = -1


@dataclass(frozen=True, slots=True)
class Order:
    """What to fetch, and how to call it when it is here; ``primary`` is where, None for the
    default storage.
    """

    content_id: str
    size: int
    published_name: str
    format: ImageFormat
    head_is_verified: bool
    is_readable_early: bool
    primary: str | None = None


class Fetch:
    """A running (or ended) fetch. Its readers wait in it; its owner awaits :meth:`run`."""

    def __init__(
        self,
        order: Order,
        surroundings: Surroundings,
        place: Place,
        seeds: Sequence[Path] = (),
    ) -> None:
        self.order = order
        self._seeds = seeds
        self.place = place
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.error: errors.DdfsError | None = None
        # The host that fetches it onto a storage that hosts share, while this one waits for it.
        self.waits_for: str | None = None
        self._with = surroundings
        self._transfer: Transfer | None = None
        self._grid: Grid | None = None
        self._partial: PartialFile | None = None
        # Its bytes are judged: what is asked of them from now on, others have to see to.
        self.is_publishing = False
        self._head_passed = order.head_is_verified
        self._head_arrived = trio.Event()
        self._wanted: list[ByteRange] = []
        self._arrivals: dict[int, trio.Event] = {}
        self._readers = 0
        self._no_readers = trio.Event()
        # The last reader closes the partial file: nobody waits for that any more.
        self._is_left_to_readers = False

    # -- what others see -----------------------------------------------------------------

    def statistics(self) -> TransferStatistics | None:
        """How far it is; None before the transfer has begun."""
        return self._transfer.statistics() if self._transfer else None

    def is_readable(self, wanted: ByteRange) -> bool:
        """Whether :meth:`read` has *wanted* now."""
        return (
            self._head_passed
            and self._partial is not None
            and self._partial.fd >= 0
            and self._transfer is not None
            and self._transfer.is_verified(wanted)
        )

    async def read(self, wanted: ByteRange, *, early: bool) -> bytes | None:
        """Verified bytes: *early* as soon as they are here, else when all are.

        None when the fetch ended first: published, or with :attr:`error`.
        """
        if early and self.order.is_readable_early:
            await self._wait_readable(wanted)
        else:
            await self.ended.wait()
        if self.ended.is_set() or self._partial is None:
            return None
        # The descriptor is closed only after the last reader has gone: its number could
        # otherwise be another file's by the time a thread reads from it.
        self._readers += 1
        try:
            with storage_errors(self._partial.path):
                return await reading.read_file(self._partial.fd, wanted.start, len(wanted))
        finally:
            self._readers -= 1
            if not self._readers:
                self._no_readers.set()
                if self._is_left_to_readers:
                    self._partial.close()

    async def _wait_readable(self, wanted: ByteRange) -> None:
        self._want(wanted)
        while not self.ended.is_set() and not self.is_readable(wanted):
            await self._next_arrival(wanted).wait()

    def _want(self, wanted: ByteRange) -> None:
        if self._transfer is None:
            self._wanted.append(wanted)
        elif not self._transfer.is_verified(wanted):
            self._transfer.want(wanted)

    def _next_arrival(self, wanted: ByteRange) -> trio.Event:
        """Set when the first piece that *wanted* lacks arrives, or the fetch ends."""
        transfer, grid = self._transfer, self._grid
        piece = _ANY
        if transfer is not None and grid is not None and self._head_passed:
            lacking = (
                p for p in grid.pieces_under(wanted) if not transfer.is_verified(grid.bytes_of(p))
            )
            piece = next(lacking, _ANY)
        return self._arrivals.setdefault(piece, trio.Event())

    def _wake(self, piece: int) -> None:
        event = self._arrivals.pop(piece, None)
        if event is not None:
            event.set()

    # -- the work ------------------------------------------------------------------------

    async def run(self) -> PublishedFile:
        """Wait for its turn; then fetch, verify, inspect and publish.

        Raises what went wrong, after which the partial file and its journal stay for the
        next try. Cancelled, it has journaled what is verified.
        """
        with self.scope:
            try:
                async with self.place:
                    return await self._run()
            finally:
                self._with.storage.release(self.order.content_id)
                with trio.move_on_after(_READERS_LEAVE_SECONDS) as ending:
                    ending.shield = True
                    disclaim = self._with.storage.disclaim
                    await trio.to_thread.run_sync(disclaim, self.order.content_id)
        raise errors.CancelledFetchError("the fetch was cancelled; what is here is kept")

    async def _run(self) -> PublishedFile:
        manifest = await self._manifest()
        storage, content_id = self._with.storage, self.order.content_id
        while not await trio.to_thread.run_sync(storage.claim, content_id):
            # Another host fetches it; what it publishes is seen at once.
            if (adopted := await self._adopt(manifest)) is not None:
                return adopted
            holder = await trio.to_thread.run_sync(storage.holder, content_id)
            self.waits_for = holder or _ANOTHER_HOST
            await trio.sleep(CLAIM_SECONDS)
        self.waits_for = None
        if (adopted := await self._adopt(manifest)) is not None:
            return adopted
        await reserve(storage, content_id, room_for(manifest), self._with.make_room)
        done = await trio.to_thread.run_sync(storage.finish_publishing, content_id)
        if done is not None and await self._is_signed(Path(done.path), manifest):
            return done
        files = storage.partial_path(content_id), storage.journal_path(content_id)
        if manifest.is_unpinned:
            await trio.to_thread.run_sync(pin.start_over, *files)
        self._partial = await trio.to_thread.run_sync(PartialFile.open, *files, manifest)
        await regain(self._partial, manifest)
        # What is in primary storage under another name need not be downloaded. It is copied,
        # not taken: it may be somebody's disk.
        alike = await trio.to_thread.run_sync(storage.files_of_size, self.order.size)
        await plant(self._partial, manifest, (*self._seeds, *alike))
        storage.note_written(content_id, self._partial.bytes_here)
        grants = await self._with.grants_of(content_id)
        async with pin.watched(manifest, self._partial, self._with.transport, grants):
            await self._transmit(manifest, self._partial, grants)
        await self._judge(Path(f"/proc/self/fd/{self._partial.fd}"))
        if manifest.is_unpinned:
            await self._pin(manifest, self._partial, grants)
        path = await self._unpacked(manifest, self._partial)
        # Of what stands there under its name only now can be said whether it is the same.
        manifest = await self._manifest()
        return await self._adopt(manifest, is_judged=True) or await self._publish(path)

    async def _manifest(self) -> Manifest:
        return await trio.to_thread.run_sync(
            self._with.ledger.manifest, self.order.content_id, limiter=self._with.ledger_limiter
        )

    async def _pin(self, manifest: Manifest, partial: PartialFile, grants: Grants | None) -> None:
        """Before it has a name: whatever happens then, its bytes are bound."""
        digest = await pin.pin(manifest, partial, self._with.transport, grants)
        await trio.to_thread.run_sync(
            self._with.ledger.pin, self.order.content_id, digest, limiter=self._with.ledger_limiter
        )
        if manifest.packing is None:
            await say(self._with.storage, self.order.content_id, self.order.size, digest.hexdigest)
        log.warning("%s: unverified; from now on it is %s", self.order.published_name, digest)

    async def _adopt(self, manifest: Manifest, *, is_judged: bool = False) -> PublishedFile | None:
        """Use the file that already has the name, if it has the bytes; never fetch twice."""
        around, name = self._with, self.order.published_name
        path = await find_standing(
            around.storage, name, manifest, around.ledger, around.ledger_limiter
        )
        if path is None or not (is_judged or await self._is_signed(path, manifest)):
            return None
        log.info("%s: already in primary storage, its hash is right: used as it is", path)
        return await adopt(around.storage, self.order.content_id, name, around.make_room)

    async def _judge(self, image: Path) -> None:
        """Refuse *image*, complete and as mirrors have it, if it is not signed as it has to be."""
        self.is_publishing = True
        if self._with.judge is not None:
            await self._with.judge.judge(self.order.content_id, image)

    async def _is_signed(self, path: Path, manifest: Manifest) -> bool:
        """Whether what stands at *path* may be used; False where only its packed file, which has
        to be fetched, can tell. Raises why it may not.
        """
        judge = self._with.judge
        is_asked = judge is not None and judge.is_asked_for(manifest.content_id)
        if manifest.packing is not None and is_asked:
            return False
        await self._judge(path)
        return True

    async def _transmit(
        self, manifest: Manifest, partial: PartialFile, grants: Grants | None
    ) -> None:
        self._grid = manifest.grid
        self._transfer = Transfer(
            manifest,
            partial,
            self._with.transport,
            observer=self._observe,
            location=self._with.location,
            grants=grants,
        )
        for wanted in self._wanted:
            self._transfer.want(wanted)
        self._wake(_ANY)
        # Kept aside, since a nursery would wrap them: the first one is the reason.
        failures: list[errors.DdfsError] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_head, manifest, partial, failures, nursery.cancel_scope)
            try:
                await self._transfer.run()
            except errors.DdfsError as error:
                failures.append(error)
            nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]
        if not self._head_passed and manifest.packing is None:
            await self._pass_head(partial)

    def _observe(self, event: events.FetchEvent) -> None:
        """What the transfer tells; called in the event loop, never blocks."""
        if isinstance(event, events.PieceVerified):
            self._wake(event.piece)
            if not self._head_passed and not self._head_arrived.is_set() and self._has_head():
                self._head_arrived.set()
        elif isinstance(event, events.MirrorBlamed):
            log.warning(
                "%s: mirror %s: %s", self.order.published_name, event.mirror_url, event.reason
            )
        elif isinstance(event, events.MirrorFailed):
            log.info("%s: mirror %s: %s", self.order.published_name, event.mirror_url, event.error)

    def _has_head(self) -> bool:
        if self._transfer is None or self.order.size == 0:
            return False
        return self._transfer.is_verified(ByteRange(0, min(HEAD_LENGTH, self.order.size)))

    async def _watch_head(
        self,
        manifest: Manifest,
        partial: PartialFile,
        failures: list[errors.DdfsError],
        scope: trio.CancelScope,
    ) -> None:
        """Let readers in once the verified head has passed; end the fetch if it does not."""
        if self._head_passed or manifest.pieces is None or manifest.packing is not None:
            return
        if not self._has_head():
            await self._head_arrived.wait()
        try:
            await self._pass_head(partial)
        except errors.DdfsError as error:
            failures.append(error)
            scope.cancel()

    async def _pass_head(self, partial: PartialFile) -> None:
        """Inspect the verified head; put it in the place of one that a mirror only claimed."""
        length = min(HEAD_LENGTH, self.order.size)
        content_id = self.order.content_id
        head = await reading.read_file(partial.fd, 0, length)
        if head != self._with.heads.read(content_id, 0, length):
            log.warning(
                "%s: the head that a mirror sent at registering was not the verified one; "
                "it is replaced",
                self.order.published_name,
            )
        self._with.inspector.inspect_head(head, self.order.size, self.order.format)
        await trio.to_thread.run_sync(self._with.heads.put, content_id, head)
        self._head_passed = True
        self._wake(_ANY)

    async def _unpacked(self, manifest: Manifest, partial: PartialFile) -> Path:
        """The complete image: the partial file itself, or what comes out of it."""
        if manifest.packing is None:
            return partial.path
        return await unpack(manifest, partial, self._with)

    async def _publish(self, path: Path) -> PublishedFile:
        await trio.to_thread.run_sync(
            self._with.inspector.inspect_file,
            path,
            self.order.format,
            limiter=FILES,
        )
        return await publish(self._with.storage, path, self.order.published_name)

    def finish(self, error: errors.DdfsError | None) -> None:
        """Tell all readers that it is over. Called once, by the owner, after :meth:`run`."""
        self.error = error
        self.ended.set()
        for event in self._arrivals.values():
            event.set()
        self._arrivals.clear()

    async def close(self) -> None:
        """Close the partial file once its last reader has left; after :meth:`finish`.

        Waits for a while only: a disk that hangs leaves the closing to that reader.
        """
        if self._partial is None:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _READERS_LEAVE_SECONDS):
            while self._readers:
                self._no_readers = trio.Event()
                await self._no_readers.wait()
        self._is_left_to_readers = self._readers > 0
        if not self._is_left_to_readers:
            self._partial.close()
