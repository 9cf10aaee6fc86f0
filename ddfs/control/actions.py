"""What is done to domains and their disks behind the API, beside starting them.

libvirt stands behind small protocols here as in :mod:`ddfs.control.host`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from ddfs import errors
from ddfs.clone import DEFAULT_POOL, CloneOrder, Clones, Undo
from ddfs.control.action_messages import (
    AttachedDisk,
    AttachTemplate,
    Autostart,
    AutostartDomain,
    ClonedVolume,
    CloneTemplate,
    ExplainGate,
    GateFileReport,
    GateReport,
)
from ddfs.gate import Gate, NeededFile
from ddfs.image import chain
from ddfs.image.domain import PoolTargets
from ddfs.model import SpoolState, Template
from ddfs.templates import Templates, progress_percent

# libvirt's names for a disk's place (virDiskNameParse).
_TARGET: Final = re.compile(r"(fd|hd|sd|vd|xvd|ubd)[a-z]{1,3}")

# What libvirt does not say about a machine of type q35, whose ports are made when it is defined.
_NO_PORT: Final = (
    "; if it has no free port, give it one while it is off: virsh edit {domain}, and add "
    "<controller type='pci' model='pcie-root-port'/>"
)

_limiter = trio.CapacityLimiter(2)


class Domains(Protocol):
    """libvirt's domains."""

    async def domain_xml(self, name: str) -> bytes:
        """With what one starts next; :class:`errors.LibvirtError`."""


class Devices(Protocol):
    """Devices of domains."""

    async def check(self, domain: str, target: str, *, persistent: bool) -> None:
        """Raise what :meth:`attach` would raise before anything is fetched."""

    async def attach(
        self,
        domain: str,
        target: str,
        path: str,
        driver: str,
        *,
        kind: str,
        persistent: bool,
        force: bool,
    ) -> str:
        """Attach a complete file, or ``block`` device, read-only; ``medium`` or ``disk``."""


class MarkedDomain(Protocol):
    """A domain that is to be started at boot."""

    @property
    def domain(self) -> str:
        """Its name."""

    @property
    def active(self) -> bool:
        """Whether it runs."""


class Marks(Protocol):
    """Which domains are to be started at boot."""

    async def marked(self) -> Sequence[MarkedDomain]:
        """All of them."""

    async def mark(self, domain: str, on: bool) -> MarkedDomain:
        """Mark one, or not any more."""


class DomainActions:
    """Implements :class:`ddfs.control.service.Actions`.

    *undoing* knows how to take back a volume, by its pool and name.
    """

    def __init__(
        self,
        templates: Templates,
        gate: Gate,
        domains: Domains,
        devices: Devices,
        marks: Marks,
        clones: Clones,
        undoing: Callable[[str, str], Undo],
        templates_dir: str,
    ) -> None:
        self._templates = templates
        self._gate = gate
        self._domains = domains
        self._devices = devices
        self._marks = marks
        self._clones = clones
        self._undoing = undoing
        self._directory = templates_dir

    # -- the gate --------------------------------------------------------------------------

    async def explain_gate(self, question: ExplainGate) -> GateReport:
        """What the hook would say, and why."""
        if (question.domain is None) == (question.xml is None):
            raise errors.InvalidValueError("give either a domain or its XML")
        if question.xml is None:
            name = question.domain or ""
            xml = await self._domains.domain_xml(name)
        else:
            name, xml = "this domain", question.xml.encode()
        mount = chain.Mountpoint(os.path.dirname(self._directory))

        def look() -> tuple[list[tuple[chain.DomainFile, NeededFile, bool]], tuple[str, ...]]:
            pools = PoolTargets()
            found = chain.domain_files(xml, mount, pools)
            sealed = {f.file: f for f in chain.sealed_files(found, mount)}
            described = [_described(file, mount, sealed) for file in found]
            return described, chain.chain_problems(xml, mount, pools)

        try:
            files, problems = await trio.to_thread.run_sync(look, limiter=_limiter)
        except chain.ChainError as error:
            raise errors.InvalidValueError(f"{name}: {error}") from error
        asked = [
            needed
            for file, needed, _ in files
            if mount.holds(file.path) or (needed.device, needed.inode) != (0, 0)
        ]
        verdict = await self._gate.explain(name, asked)
        reports = tuple(self._report(*described, mount) for described in files)
        return GateReport(name, verdict.allowed, verdict.message, reports, problems)

    def _report(
        self, file: chain.DomainFile, needed: NeededFile, is_there: bool, mount: chain.Mountpoint
    ) -> GateFileReport:
        template = self._gate.template_of(needed)
        state, percent, left = "local" if is_there else "missing", None, None
        if template is not None:
            holding = self._templates.holding(template)
            state, left = holding.state.value, holding.seconds_left
            percent = progress_percent(holding, template.size)
        elif mount.holds(file.path):
            state = "missing"
        return GateFileReport(
            file.target,
            file.role,
            file.path,
            file.writable,
            file.optional,
            state,
            template.file_name if template else None,
            percent,
            left,
            self._gate.problem_of(needed),
        )

    # -- disks -----------------------------------------------------------------------------

    async def attach(self, domain: str, request: AttachTemplate) -> AttachedDisk:
        """Attach a template that is here; that it is not is the last thing to be refused."""
        template = self._templates.newest(request.template)
        if _TARGET.fullmatch(request.target) is None:
            raise errors.InvalidValueError(
                f"{request.target[:40]!r} is no place for a disk: write vdb, sda or the like"
            )
        path = os.path.join(self._directory, template.file_name)
        try:
            await self._devices.check(domain, request.target, persistent=request.persistent)
            await self._require_published(template)
            await self._gate.shown([template])
            published = self._templates.published(template)
            change = await self._devices.attach(
                domain,
                request.target,
                path,
                template.format.qemu_name,
                kind="block" if published is not None and published.is_volume else "file",
                persistent=request.persistent,
                force=request.force,
            )
        except errors.LibvirtError as error:
            # libvirt's own words name neither, as in "No more available PCI slots".
            hint = _NO_PORT.format(domain=shlex.quote(domain)) if "PCI" in str(error) else ""
            raise errors.LibvirtError(
                f"{template.file_name} is not attached to {domain} at {request.target}: "
                f"{error}{hint}",
                error.code,
            ) from error
        return AttachedDisk(domain, request.target, path, change)

    async def _require_published(self, template: Template) -> None:
        if not await self._templates.confirm_published(template):
            state = self._templates.holding(template).state
            how = "is being fetched" if state is SpoolState.FETCHING else "is not here"
            raise errors.NotHereYetError(
                f"{template.file_name} {how}; wait for it with: ddfs prefetch {template.exact_name}"
            )

    async def clone(self, request: CloneTemplate) -> ClonedVolume:
        """Make a disk."""
        pool = request.pool or DEFAULT_POOL
        order = CloneOrder(
            request.template, request.volume, pool, request.size, request.full, request.replace
        )
        made = await self._clones.make(order, self._undoing(pool, request.volume))
        return ClonedVolume(
            pool,
            request.volume,
            str(made.path),
            made.format.qemu_name,
            made.capacity,
            made.how,
            made.replaced,
        )

    # -- autostart -------------------------------------------------------------------------

    async def autostart_domains(self) -> list[AutostartDomain]:
        """Those that are marked."""
        return [AutostartDomain(m.domain, True, m.active) for m in await self._marks.marked()]

    async def set_autostart(self, domain: str, request: Autostart) -> AutostartDomain:
        """Mark one, or not any more."""
        marked = await self._marks.mark(domain, request.enabled)
        return AutostartDomain(marked.domain, request.enabled, marked.active)


def _described(
    file: chain.DomainFile,
    mount: chain.Mountpoint,
    sealed: dict[chain.DomainFile, chain.SealedFile],
) -> tuple[chain.DomainFile, NeededFile, bool]:
    """A file, as the gate is asked about it, and whether it is there; the mount is not touched."""
    path = mount.resolve(file.path)
    needed = NeededFile(file.path, file.writable, file.optional, kind=file.kind)
    if mount.holds(path):
        return file, needed, False
    found = sealed.get(file._replace(path=path))
    if found is not None:
        needed = NeededFile(
            path, file.writable, file.optional, found.device, found.inode, kind=file.kind
        )
    return file, needed, os.path.lexists(path)
