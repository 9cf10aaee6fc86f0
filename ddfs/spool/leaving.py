"""How files leave primary storage: purged by hand, evicted to make room, or withheld while the
hosts that share it agree on their end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager

import trio

from ddfs import errors
from ddfs.model import PublishedFile, SpoolReference, SpoolState
from ddfs.spool.fetching import Surroundings
from ddfs.spool.holding import Holding, Withheld
from ddfs.spool.ports import Storage
from ddfs.spool.reading import OpenFiles


class Leaving:
    """A part of the spool, whose *holdings* it changes."""

    def __init__(
        self,
        holdings: MutableMapping[str, Holding],
        storages: Mapping[str, Storage],
        surroundings: Surroundings,
        files: OpenFiles,
        on_change: Callable[[str], None],
    ) -> None:
        self._holdings = holdings
        self._storages = storages
        self._with = surroundings
        self._files = files
        self._on_change = on_change

    async def purge(self, content_id: str) -> None:
        """Delete the published file and what is partial. The caller knows that nobody needs it.

        One that makes room by then is let finish: two that delete the same would each let go
        of it while the other is still at it, and a fetch begin in between.
        """
        while (holding := self._holdings.get(content_id)) is not None:
            if holding.evicted is None:
                break
            await holding.evicted.wait()
        if holding is None:
            return
        if holding.is_going:
            raise errors.TemplateInUseError("it is being deleted already")
        if holding.fetch is not None:
            raise errors.TemplateInUseError("it is being fetched; end that with ddfs cancel")
        if holding.copying:
            raise errors.TemplateInUseError("it is being copied to another primary storage")
        if holding.repairs:
            raise errors.TemplateInUseError("it is being repaired; try again when that has ended")
        holding.is_going = True
        try:
            await self._delete(content_id, holding)
        finally:
            holding.is_going = False
        # A failed fetch that waits to be tried again is not tried for what is gone.
        holding.rest = None
        self._holdings.pop(content_id, None)

    async def evict(self, content_id: str, primary: str, uses: int) -> bool:
        """Delete the published file on *primary* to make room, unless it was used since
        :meth:`uses` said *uses*; whether it is gone. Who wants it meanwhile has it fetched again.
        """
        holding = self._holdings.get(content_id)
        if holding is None or holding.is_busy:
            return False
        # What is withheld nobody can have used: all hosts have agreed.
        is_unused = primary in holding.withheld or (
            primary in holding.files and holding.uses == uses
        )
        if not is_unused:
            return False
        evicted = trio.Event()
        holding.is_going, holding.evicted = True, evicted
        # The name in the mount must not lead to a file that is gone.
        self._on_change(content_id)
        try:
            await self._delete_file(content_id, holding, primary)
            if not holding.all_files():
                await self._forget(content_id)
        finally:
            holding.is_going = False
            if holding.all_files():
                self._on_change(content_id)
            else:
                self._holdings.pop(content_id, None)
            holding.evicted = None
            evicted.set()
        return True

    @contextmanager
    def repairing(self, content_id: str) -> Iterator[None]:
        """Inside, nothing of it is deleted from here: neither its files nor what a repair fetches
        beside them, whose names would be free for a fetch. Raises
        :class:`errors.TemplateInUseError` while that is going on.
        """
        holding = self._holdings.get(content_id)
        if holding is None or holding.is_going:
            raise errors.TemplateInUseError("it is being deleted")
        holding.repairs += 1
        try:
            yield
        finally:
            holding.repairs -= 1

    async def _delete(self, content_id: str, holding: Holding) -> None:
        for primary in list(holding.all_files()):
            await self._delete_file(content_id, holding, primary)
        await self._forget(content_id)

    async def _delete_file(self, content_id: str, holding: Holding, primary: str) -> None:
        file = holding.all_files()[primary]
        self._files.forget(file.path)
        await trio.to_thread.run_sync(self._storages[primary].purge, file)
        await self.forget_published(content_id, holding, primary)

    async def _forget(self, content_id: str) -> None:
        """What is partial, and the references."""
        for storage in self._storages.values():
            await trio.to_thread.run_sync(storage.discard, content_id)
            await trio.to_thread.run_sync(
                self._with.ledger.forget_reference,
                content_id,
                storage.name,
                limiter=self._with.ledger_limiter,
            )

    async def forget_published(self, content_id: str, holding: Holding, primary: str) -> None:
        """Its file on *primary* is gone."""
        holding.drop(primary)
        if not holding.files:
            holding.bytes_here = 0
        self._on_change(content_id)
        await write_down(self._with, self._storages[primary], content_id, SpoolState.ABSENT, 0)

    # -- files that other hosts may delete ---------------------------------------------------

    def withhold(
        self, content_id: str, primary: str, uses: int | None, wanted: Callable[[str], None]
    ) -> bool:
        """Use the file on *primary* no more until :meth:`give_back`, unless it was used since
        :meth:`uses` said *uses* (None: whatever was); whether that can be. ``wanted(content_id)``
        is called whenever somebody wants it.
        """
        holding = self._holdings.get(content_id)
        if holding is None:
            return True
        if uses is not None and (holding.is_busy or holding.uses != uses):
            return False
        file = holding.files.pop(primary, None)
        if file is not None:
            holding.withheld[primary] = Withheld(file, wanted)
            self._on_change(content_id)
        return True

    async def give_back(self, content_id: str, primary: str) -> None:
        """The file on *primary* may be used again, if it is still there."""
        holding = self._holdings.get(content_id)
        if holding is None or (withheld := holding.withheld.get(primary)) is None:
            return
        is_intact = self._storages[primary].is_intact
        intact = await trio.to_thread.run_sync(is_intact, withheld.file)
        if holding.withheld.get(primary) is not withheld:
            return
        if intact:
            holding.drop(primary)
            holding.put(primary, withheld.file)
            self._on_change(content_id)
        else:
            await self.forget_published(content_id, holding, primary)


async def write_down(
    around: Surroundings,
    storage: Storage,
    content_id: str,
    state: SpoolState,
    bytes_here: int,
    published: PublishedFile | None = None,
    error: str | None = None,
) -> None:
    """The reference of a content on *storage*, into the catalogue; also when cancelled."""
    reference = SpoolReference(
        content_id, storage.name, state, bytes_here, time.time(), published, error
    )
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(
            around.ledger.record_reference, reference, limiter=around.ledger_limiter
        )
