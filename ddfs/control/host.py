"""A host's templates, gate, pool and domains behind the API: the daemon's ``Service``.

Translates between messages and what they are about, and decides nothing that the parts do
not decide. libvirt stands behind two small protocols; the gate is not given either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ddfs import __version__, errors
from ddfs.control.deployments import HostDeployments
from ddfs.control.keeping import HostKeeping
from ddfs.control.messages import (
    AddTemplate,
    ChangeLimits,
    DaemonStatus,
    GateAnswer,
    GateQuestion,
    Limits,
    MirrorStatus,
    PoolStatus,
    PrimaryStatus,
    TemplateStatus,
)
from ddfs.control.ports import Domains, PrimaryStorage, VolumePool, VolumePoolState
from ddfs.control.service import Actions
from ddfs.declaration import Declaration
from ddfs.gate import Gate, NeededFile
from ddfs.image import chain
from ddfs.image.domain import PoolTargets
from ddfs.image.header import ChainError
from ddfs.image.openers import processes_with_open
from ddfs.limits import HostLimits
from ddfs.model import SpoolState, Template, is_unverified
from ddfs.spool.rest import Demand
from ddfs.spool.seed import check_seed
from ddfs.templates import Registration, Templates
from ddfs.versions import SourceState

# Walking the chains of all domains reads their images' headers.
_chain_limiter = trio.CapacityLimiter(2)


# libvirt's VIR_ERR_NO_STORAGE_VOL.
_NO_STORAGE_VOLUME: Final = 50


@dataclass(frozen=True, slots=True)
class HostFigures:
    """What the daemon knows and the parts do not."""

    mountpoint: Path
    templates_dir: Path
    primaries: Sequence[PrimaryStorage]


class Host:
    """Implements :class:`ddfs.control.service.Service`.

    ``start_later``, where ``gate.then`` is "start", takes a refused domain and the
    templates that it waits for.
    """

    def __init__(
        self,
        templates: Templates,
        gate: Gate,
        pool: VolumePool,
        domains: Domains,
        actions: Actions,
        figures: HostFigures,
        limits: HostLimits,
        metrics: Callable[[], bytes],
        keeping: HostKeeping,
        deploying: HostDeployments,
        start_later: Callable[[str, Sequence[Template]], None] | None = None,
        source_state: Callable[[str], SourceState] = lambda _: SourceState(),
    ) -> None:
        self._source_state = source_state
        self._templates = templates
        self._gate = gate
        self._pool = pool
        self._domains = domains
        self._actions = actions
        self._figures = figures
        self._limits = limits
        self._metrics = metrics
        self.keeping = keeping
        self.deploying = deploying
        self._start_later = start_later
        self._started_at = time.monotonic()

    @property
    def actions(self) -> Actions:
        """What is done to domains and their disks."""
        return self._actions

    # -- looking ---------------------------------------------------------------------------

    def daemon_status(self) -> DaemonStatus:
        """The daemon in figures."""
        templates = self._templates.all()
        holdings = [self._templates.holding(template) for template in templates]
        states = [holding.state for holding in holdings]
        by_content = {t.content_id: h for t, h in zip(templates, holdings, strict=True)}
        return DaemonStatus(
            version=__version__,
            pid=os.getpid(),
            uptime=time.monotonic() - self._started_at,
            mountpoint=str(self._figures.mountpoint),
            templates_dir=str(self._figures.templates_dir),
            fetching=states.count(SpoolState.FETCHING),
            published=states.count(SpoolState.PUBLISHED),
            failed=states.count(SpoolState.FAILED),
            total=len(templates),
            bytes_per_second=sum(h.bytes_per_second for h in by_content.values()),
            primary=tuple(_primary_status(primary) for primary in self._figures.primaries),
        )

    def templates(self) -> list[TemplateStatus]:
        """All templates, sorted by name."""
        found = sorted(self._templates.all(), key=lambda template: template.name)
        return [self.status_of(template) for template in found]

    def template(self, name: str) -> TemplateStatus:
        """One template."""
        return self.status_of(self._templates.newest(name))

    def status_of(self, template: Template) -> TemplateStatus:
        """A template, as it is told to the outside."""
        holding = self._templates.holding(template)
        source = self._source_state(template.family)
        return TemplateStatus(
            name=template.name,
            format=template.format.value,
            file_name=template.file_name,
            path=str(self._figures.templates_dir / template.file_name),
            size=template.size,
            virtual_size=template.virtual_size,
            source=template.source,
            content_id=template.content_id,
            state=holding.state.value,
            bytes_here=holding.bytes_here,
            bytes_per_second=holding.bytes_per_second,
            seconds_left=holding.seconds_left,
            published_path=holding.published.path if holding.published else None,
            last_error=holding.error,
            last_error_kind=holding.error_kind,
            retry_in=holding.retry_in,
            added_at=template.added_at,
            head_is_verified=template.head_is_verified,
            readable_early=template.is_readable_early,
            unverified=is_unverified(template.content_id) and template.signature is None,
            signed=template.signature is not None,
            weak=template.weak if template.signature is None else None,
            packed_size=template.packed_size,
            size_is_known=template.size_is_known,
            family=template.family,
            version=template.version,
            is_newest=template is self._templates.newest(template.family),
            primaries=holding.primaries,
            waits_for=holding.waits_for,
            pinned=self.keeping.is_pinned(template),
            last_used_at=self.keeping.last_used_at(template),
            source_verdict=source.verdict.value if source.verdict else None,
            source_message=source.message,
            checked_at=source.checked_at,
            check_every=self._templates.declaration(template).check_every,
            mirrors=tuple(
                MirrorStatus(
                    url=mirror.url,
                    bytes_received=mirror.bytes_received,
                    bytes_per_second=mirror.bytes_per_second,
                    state=str(mirror.state),
                    last_error=str(mirror.last_error) if mirror.last_error else None,
                    rejected_pieces=mirror.rejected_pieces,
                )
                for mirror in holding.mirrors
            ),
        )

    def metrics(self) -> bytes:
        """Prometheus text."""
        return self._metrics()

    # -- templates -------------------------------------------------------------------------

    async def add_template(self, request: AddTemplate) -> TemplateStatus:
        """Register one."""
        plain = dataclasses.asdict(request)
        name = plain.pop("name")
        declaration = Declaration.from_plain(plain)
        self.keeping.check_primary(declaration.primary)
        return self.status_of(await self._templates.add(Registration(name, declaration)))

    async def remove_template(self, name: str, purge: bool) -> None:
        """Forget one version that nothing uses; which one has to be said if there are more."""
        versions = self._templates.versions(name)
        if len(versions) > 1:
            raise errors.InvalidValueError(
                f"{name} has {len(versions)} versions: name one of them "
                f"({', '.join(each.exact_name for each in versions[:5])}), or remove them all "
                "with --all-versions"
            )
        await self.remove_one(self._templates.newest(name), purge)

    async def remove_one(self, template: Template, purge: bool) -> None:
        """Forget a template that nothing uses; :class:`errors.TemplateInUseError`."""
        users = await self._users_of(template)
        if users:
            raise errors.TemplateInUseError(
                f"{template.file_name} is used by {', '.join(sorted(users)[:5])}; "
                "undefine that, or give it another disk, first"
            )
        if purge and len(self._templates.with_content(template.content_id)) == 1:
            # Without its file, an overlay that no domain has is lost as well.
            try:
                async with self.keeping.freed(template):
                    await self._templates.remove(template.name, purge=True)
            except errors.TemplateInUseError as error:
                raise errors.TemplateInUseError(
                    f"{template.file_name}: {error}; mend that, or remove the template without "
                    "--purge"
                ) from None
            return
        # Its file is another name's as well. Should that go meanwhile, nobody has looked who
        # uses the file, and it stays for the next collection.
        await self._templates.remove(template.name, purge=False)

    async def _users_of(self, template: Template) -> set[str]:
        """The domains that have the template, or its published file, under a disk.

        With libvirtd down no domain can be asked; then open descriptors are all that
        speaks for a use, and the published file's own are looked at by the caller.
        """
        published = self._templates.published(template)
        paths = {str(self._figures.templates_dir / template.file_name)}
        if published is not None and len(self._templates.with_content(template.content_id)) == 1:
            paths.add(published.path)
        try:
            domains = await self._domains.all_xml()
        except errors.LibvirtError:
            domains = {}
        users = {f"domain {name}" for name in await self._with_files(domains, paths)}
        return users | await trio.to_thread.run_sync(processes_with_open, paths)

    async def _with_files(self, domains: dict[str, bytes], paths: set[str]) -> list[str]:
        from_mount = chain.Mountpoint(str(self._figures.mountpoint))

        def uses(xml: bytes) -> bool:
            try:
                files = chain.domain_files(xml, from_mount, PoolTargets())
            except ChainError:
                return True
            return any(file.path in paths for file in files)

        def look() -> list[str]:
            return [name for name, xml in domains.items() if uses(xml)]

        return await trio.to_thread.run_sync(look, limiter=_chain_limiter)

    def prefetch(self, names: Sequence[str]) -> list[TemplateStatus]:
        """Start fetches by hand."""
        wanted = [self._templates.newest(name) for name in names]
        for template in wanted:
            self._templates.demand(template, Demand.HAND)
        return [self.status_of(template) for template in wanted]

    async def prefetch_seeded(
        self, names: Sequence[str], seeds: Sequence[str]
    ) -> list[TemplateStatus]:
        """Start fetches by hand, with what *seeds* have of them."""
        wanted = [self._templates.newest(name) for name in names]
        paths = [_absolute(seed) for seed in seeds]
        for path in paths:
            # A seed may be on a file system that does not answer.
            await trio.to_thread.run_sync(
                check_seed, path, self._figures.mountpoint, abandon_on_cancel=True
            )
        for template in wanted:
            if self._templates.is_fetching(template):
                raise errors.InvalidValueError(
                    f"{template.name} is being fetched already, and seeds help only at the "
                    f"beginning; first: ddfs cancel {template.exact_name}"
                )
        for template in wanted:
            self._templates.demand(template, Demand.HAND, paths)
        return [self.status_of(template) for template in wanted]

    def cancel(self, names: Sequence[str]) -> list[TemplateStatus]:
        """End fetches."""
        wanted = [self._templates.newest(name) for name in names]
        for template in wanted:
            self._templates.cancel(template)
        return [self.status_of(template) for template in wanted]

    def limits(self) -> Limits:
        """What fetches may take."""
        return _limits(self._limits)

    def change_limits(self, change: ChangeLimits) -> Limits:
        """Change it, also for those that run."""
        self._limits.change(
            bandwidth=change.bandwidth,
            bandwidth_per_fetch=change.bandwidth_per_fetch,
            connections_per_host=change.connections_per_host,
            fetches_at_once=change.fetches_at_once,
        )
        return _limits(self._limits)

    # -- domains ---------------------------------------------------------------------------

    async def gate(self, question: GateQuestion) -> GateAnswer:
        """Answer the hook."""
        files = [
            NeededFile(f.path, f.writable, f.optional, f.device, f.inode, f.boot, f.kind)
            for f in question.files
        ]
        verdict = await self._gate.ask(question.domain, files)
        if verdict.pending and self._start_later is not None:
            self._start_later(question.domain, verdict.pending)
            return GateAnswer(False, f"{verdict.message}; it is started when that is here")
        return GateAnswer(verdict.allowed, verdict.message)

    async def domain_templates(self, domain: str) -> list[TemplateStatus]:
        """The templates under a domain's disks, their fetches started."""
        xml = await self._domains.domain_xml(domain)

        def look() -> list[NeededFile]:
            try:
                files = chain.needed_files(xml, str(self._figures.mountpoint), PoolTargets())
            except ChainError as error:
                raise errors.InvalidValueError(f"domain {domain}: {error}") from error
            return [NeededFile(f.path, f.writable, f.optional) for f in files]

        files = await trio.to_thread.run_sync(look, limiter=_chain_limiter)
        needed = self._gate.needed_templates(files)
        for template in needed:
            # A file that was deleted by hand has to be noticed here, not by QEMU.
            if not await self._templates.confirm_published(template):
                self._templates.demand(template, Demand.HAND)
        return [self.status_of(template) for template in needed]

    async def start_domain(self, domain: str) -> None:
        """Start one."""
        try:
            await self._domains.start(domain)
        except errors.LibvirtError as error:
            if error.code != _NO_STORAGE_VOLUME:
                raise
            # A disk that names a template as a volume: libvirt is told of new ones in bundles.
            with contextlib.suppress(errors.LibvirtError):
                await self._pool.refresh()
            await self._domains.start(domain)

    # -- the pool --------------------------------------------------------------------------

    async def define_pool(self, name: str | None) -> PoolStatus:
        """Define or adopt."""
        return _pool_status(await self._pool.define(name))

    async def refresh_pool(self) -> PoolStatus:
        """Refresh."""
        return _pool_status(await self._pool.refresh())

    async def undefine_pool(self) -> PoolStatus:
        """Undefine."""
        return _pool_status(await self._pool.undefine())


def _absolute(seed: str) -> Path:
    if not seed.startswith("/") or "\0" in seed:
        raise errors.InvalidValueError(f"{seed[:140]!r}: a seed is the absolute path of a file")
    return Path(seed)


def _primary_status(primary: PrimaryStorage) -> PrimaryStatus:
    room = primary.room()
    return PrimaryStatus(
        primary.name,
        str(primary.path),
        room.total,
        room.free,
        room.held,
        room.quota,
        room.keep_free,
    )


def _limits(limits: HostLimits) -> Limits:
    now = limits.now
    return Limits(
        now.bandwidth, now.bandwidth_per_fetch, now.connections_per_host, now.fetches_at_once
    )


def _pool_status(pool: VolumePoolState) -> PoolStatus:
    return PoolStatus(pool.name, pool.path, pool.active, pool.volumes)
