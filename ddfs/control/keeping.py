"""Room behind the API: what is pinned, and what may be deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from fastapi import APIRouter

from ddfs import errors
from ddfs.control.keeping_messages import (
    Collect,
    CollectionStatus,
    DifferenceStatus,
    ForgetHost,
    Pin,
    Place,
    StoredStatus,
    TakeStock,
)
from ddfs.keeping.collector import Collector
from ddfs.keeping.judgement import Judgement, StoredFile
from ddfs.keeping.records import Records
from ddfs.keeping.sharing import Sharing
from ddfs.keeping.stocktaking import Stocktaking
from ddfs.model import Template
from ddfs.spool.rest import Demand
from ddfs.templates import Templates


class Keeping(Protocol):
    """As :class:`ddfs.control.service.Service`, for room."""

    async def collect(self, request: Collect) -> CollectionStatus:
        """Deletes what nobody needs, or says what that would be."""
        ...

    async def pin(self, request: Pin) -> None:
        """Pins or unpins; all or none: :class:`ddfs.errors.UnknownTemplateError`."""
        ...

    async def place(self, request: Place) -> None:
        """Fetches or copies templates to a primary storage."""
        ...

    async def take_stock(self, request: TakeStock) -> list[DifferenceStatus]:
        """Compares disk and catalogue."""
        ...

    async def forget_host(self, request: ForgetHost) -> None:
        """Forgets a host that is gone for good."""
        ...


class HostKeeping:
    """Implements :class:`Keeping`."""

    def __init__(
        self,
        templates: Templates,
        collector: Collector,
        records: Records,
        stocktaking: Stocktaking,
        sharing: Mapping[str, Sharing],
    ) -> None:
        self._sharing = sharing
        self._templates = templates
        self._stocktaking = stocktaking
        self._collector = collector
        self._records = records

    def is_pinned(self, template: Template) -> bool:
        """Whether it is never deleted to make room."""
        return self._records.is_pinned(template.row)

    def last_used_at(self, template: Template) -> float | None:
        """When its content was last used; None for never."""
        return self._records.last_used_at(template.content_id) or None

    def freed(self, template: Template) -> AbstractAsyncContextManager[None]:
        """Inside, nobody needs its published files; :class:`errors.TemplateInUseError` if somebody
        does, or may.
        """
        return self._collector.freed(template.content_id)

    def check_primary(self, primary: str | None) -> None:
        """Refuse a primary storage that is not in the settings."""
        known = self._templates.primaries
        if primary is not None and primary not in known:
            raise errors.InvalidValueError(
                f"primary: no primary storage is called {primary[:140]!r}; the settings have "
                f"{', '.join(known)}"
            )

    async def place(self, request: Place) -> None:
        """Fetch or copy; what was started goes on when the caller leaves."""
        self.check_primary(request.primary)
        wanted = [self._templates.newest(name) for name in request.names]
        for template in wanted:
            self._templates.demand(template, Demand.HAND, primary=request.primary)
        if request.wait:
            for template in wanted:
                await self._templates.wait_published(template)
                await self._templates.copy(template, request.primary)

    async def take_stock(self, request: TakeStock) -> list[DifferenceStatus]:
        """Compare, and mend if that is asked."""
        found = await self._stocktaking.compare(fix=request.fix)
        differences = [DifferenceStatus(d.subject, d.problem, d.remedy, d.mended) for d in found]
        for primary, sharing in self._sharing.items():
            subject = f"primary storage {primary}"
            absent = await sharing.absent()
            differences += [DifferenceStatus(subject, *each, mended=False) for each in absent]
        return differences

    async def forget_host(self, request: ForgetHost) -> None:
        """On all shared storages."""
        known = [await sharing.forget(request.host) for sharing in self._sharing.values()]
        if not any(known):
            raise errors.InvalidValueError(
                f"no other host called {request.host[:140]!r} is known on a shared primary storage"
            )

    async def collect(self, request: Collect) -> CollectionStatus:
        """Delete, or look."""
        if request.unused_for is not None and not request.unused_for >= 0:
            raise errors.InvalidValueError(f"unused_for: {request.unused_for:g} s cannot be")
        if request.dry_run:
            judgements = await self._collector.look(request.unused_for or 0.0)
            removed = [j.file for j in judgements if j.kept_because is None]
            kept: Sequence[Judgement] = [j for j in judgements if j.kept_because is not None]
        else:
            done = await self._collector.collect(request.unused_for or 0.0)
            removed, kept = list(done.removed), done.kept
        return CollectionStatus(
            request.dry_run,
            sum(file.bytes for file in removed),
            tuple(_status(file, None) for file in removed),
            tuple(_status(j.file, j.kept_because or "used meanwhile") for j in kept),
        )

    async def pin(self, request: Pin) -> None:
        """Pin or unpin."""
        rows = [self._templates.newest(name).row for name in request.names]
        for row in rows:
            await self._records.set_pinned(row, request.pinned)


def _status(file: StoredFile, kept_because: str | None) -> StoredStatus:
    return StoredStatus(
        content_id=file.content_id,
        primary=file.primary,
        path=file.path,
        size=file.bytes,
        names=file.names,
        last_used_at=file.last_used_at or None,
        kept_because=kept_because,
    )


def routes(keeping: Keeping) -> APIRouter:
    """The routes of :class:`Keeping`."""
    router = APIRouter()

    @router.post("/v1/gc")
    async def collect(request: Collect) -> CollectionStatus:
        """Deletes published files that nobody needs, the longest unused first."""
        return await keeping.collect(request)

    @router.put("/v1/places", status_code=204)
    async def place(request: Place) -> None:
        """Has templates on a primary storage, copied from another one or fetched."""
        await keeping.place(request)

    @router.post("/v1/stock")
    async def take_stock(request: TakeStock) -> list[DifferenceStatus]:
        """Compares what is on disk with the catalogue, and mends what can be."""
        return await keeping.take_stock(request)

    @router.post("/v1/hosts/forget", status_code=204)
    async def forget_host(request: ForgetHost) -> None:
        """Forgets a host that is gone for good and had a primary storage in common with us."""
        await keeping.forget_host(request)

    @router.put("/v1/pins", status_code=204)
    async def pin(request: Pin) -> None:
        """Pins templates, so that they are never deleted to make room, or unpins them."""
        await keeping.pin(request)

    return router
