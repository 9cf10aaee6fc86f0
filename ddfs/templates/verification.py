"""Verifying and repairing what is in primary storage: one job a content, by hand; and our own
piece hashes for files that came without, made by itself.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, TypeVar, TypeVarTuple, Unpack

import trio

from ddfs import errors
from ddfs.model import ByteRange, Manifest, PieceMap, PublishedFile, Template
from ddfs.spool.examine import Findings, examine
from ddfs.spool.fetching import Surroundings
from ddfs.spool.repair import repair
from ddfs.templates.templates import Templates

log = logging.getLogger(__name__)

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

# Reads whole files: two at once saturate a disk. The one for fingerprints is its own, because
# somebody waits for a verification.
_VERIFYING: Final = trio.CapacityLimiter(2)
_FINGERPRINTING: Final = trio.CapacityLimiter(1)

# After publishing, so long later: the VM that waited for it boots first.
_PAUSE_SECONDS: Final = 20.0


class Fingerprints(Protocol):
    """Where our own piece hashes are written down. Blocks."""

    def fingerprint(self, content_id: str) -> PieceMap | None:
        """Those of a content."""

    def fingerprinted(self) -> set[str]:
        """The contents that have some."""

    def record_fingerprint(self, content_id: str, pieces: PieceMap) -> None:
        """Write them down."""


class Stage(enum.Enum):
    """How far a verification is, or how it ended."""

    VERIFYING = "verifying"
    REPAIRING = "repairing"
    SOUND = "sound"
    DAMAGED = "damaged"
    REPAIRED = "repaired"
    FAILED = "error"
    CANCELLED = "cancelled"


@dataclass
class Job:
    """One verification. ``damaged`` are the bytes that were found damaged, at its beginning;
    ``can_tell`` is False where nothing tells which bytes are.
    """

    template: Template
    repairs: bool
    size: int
    stage: Stage = Stage.VERIFYING
    bytes_done: int = 0
    damaged: tuple[ByteRange, ...] = ()
    can_tell: bool = True
    error: errors.DdfsError | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return self.stage in (Stage.VERIFYING, Stage.REPAIRING)

    def note(self, count: int) -> None:
        """So many bytes were looked at; called in the thread."""
        self.bytes_done = count


class Verifications:
    """The jobs of one host. Used as ``nursery.start(verifications.run)``."""

    def __init__(
        self,
        templates: Templates,
        fingerprints: Fingerprints,
        surroundings: Surroundings,
        repairing: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        """Inside *repairing*, nothing of a content is deleted."""
        self._templates = templates
        self._fingerprints = fingerprints
        self._with = surroundings
        self._repairing = repairing
        self._jobs: dict[str, Job] = {}
        self._settled: set[str] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the jobs until cancelled; a repair that is cut off leaves what it found."""
        self._settled = await self._in_catalogue(self._fingerprints.fingerprinted)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(_PAUSE_SECONDS)
                await self._fingerprint_some()

    # -- by hand ---------------------------------------------------------------------------

    def start(self, name: str, *, repairs: bool) -> Job:
        """Begin to verify what is published of *name*, or join who does.

        Raises :class:`errors.UnknownTemplateError`, and :class:`errors.NotHereYetError`
        where nothing is published.
        """
        template = self._templates.newest(name)
        running = self._jobs.get(template.content_id)
        if running is not None and running.is_running:
            if repairs and not running.repairs:
                raise errors.TemplateInUseError(
                    f"{template.name} is being verified; repair it when that has ended"
                )
            return running
        published = self._templates.published(template)
        if published is None or self._nursery is None:
            raise errors.NotHereYetError(
                f"{template.name} is not here, so that there is nothing to verify; fetch it "
                f"with: ddfs prefetch {template.exact_name}"
            )
        job = Job(template, repairs, published.size)
        self._jobs[template.content_id] = job
        self._nursery.start_soon(self._own, job, published)
        return job

    def job(self, name: str) -> Job:
        """The running or last one; :class:`errors.InvalidValueError` if there was none."""
        template = self._templates.newest(name)
        job = self._jobs.get(template.content_id)
        if job is None:
            raise errors.InvalidValueError(
                f"{template.name} was not verified since the daemon was started"
            )
        return job

    def cancel(self, name: str) -> Job:
        """End it; what is repaired stays so."""
        job = self.job(name)
        job.scope.cancel()
        return job

    async def _own(self, job: Job, published: PublishedFile) -> None:
        name = job.template.name
        try:
            with job.scope:
                job.stage = await self._verify(job, published)
                if job.stage is not Stage.SOUND:
                    log.error("%s: verified: %s, bytes %s", name, job.stage.value, job.damaged)
        except errors.DdfsError as error:
            log.error("%s: not verified or not repaired: %s", name, error)
            job.error, job.stage = error, Stage.FAILED
        except Exception as bug:
            log.exception("%s: a bug ended the verification", name)
            job.error = errors.StorageError(f"internal error: {type(bug).__name__}: {bug}")
            job.stage = Stage.FAILED
        finally:
            if job.is_running:
                job.stage = Stage.CANCELLED

    async def _verify(self, job: Job, published: PublishedFile) -> Stage:
        manifest, pieces = await self._hashes(job.template.content_id)
        findings = await self._examine(job, published, manifest, pieces)
        job.damaged, job.can_tell = findings.ranges, findings.can_tell
        if not findings.damaged:
            return Stage.SOUND
        if not job.repairs:
            return Stage.DAMAGED
        job.stage = Stage.REPAIRING
        known = pieces if findings.can_tell else None
        others = self._siblings(job.template, published)
        around = replace(self._with, storage=self._templates.storage_of(job.template))
        with self._repairing(job.template.content_id):
            await repair(published, manifest, known, findings, others, around)
        again = await self._examine(job, published, manifest, pieces)
        if again.damaged:
            raise errors.StorageError(
                f"{published.path}: written anew, it still reads wrong at {_said(again.ranges)}; "
                "look at the disk"
            )
        return Stage.REPAIRED

    async def _hashes(self, content_id: str) -> tuple[Manifest, PieceMap | None]:
        """The manifest, and piece hashes of the published file if there are any.

        Ours are of a file that had the right hash; a document's may have come later.
        """
        manifest = await self._in_catalogue(self._with.ledger.manifest, content_id)
        own = await self._in_catalogue(self._fingerprints.fingerprint, content_id)
        if own is None and manifest.packing is None:
            return manifest, manifest.pieces
        return manifest, own

    async def _examine(
        self, job: Job, published: PublishedFile, manifest: Manifest, pieces: PieceMap | None
    ) -> Findings:
        job.bytes_done = 0

        def work() -> Findings:
            return examine(
                Path(published.path), manifest.published, pieces, job.note, from_disk=True
            )

        findings = await trio.to_thread.run_sync(work, limiter=_VERIFYING)
        await self._record(job.template.content_id, findings)
        return findings

    async def _record(self, content_id: str, findings: Findings) -> None:
        if findings.fingerprint is not None:
            await self._in_catalogue(
                self._fingerprints.record_fingerprint, content_id, findings.fingerprint
            )
            self._settled.add(content_id)

    def _siblings(self, template: Template, published: PublishedFile) -> Sequence[Path]:
        """Complete files of other versions: most of their pieces may be the same."""
        others = (
            self._templates.published(each) for each in self._templates.versions(template.family)
        )
        paths = {other.path for other in others if other is not None}
        return [Path(path) for path in sorted(paths - {published.path})]

    # -- by itself -------------------------------------------------------------------------

    async def _fingerprint_some(self) -> None:
        """Make piece hashes of what was published without any; errors are logged."""
        for template in self._templates.all():
            content_id = template.content_id
            published = self._templates.published(template)
            if published is None or content_id in self._settled:
                continue
            self._settled.add(content_id)
            try:
                await self._fingerprint(template, published)
            except errors.DdfsError as error:
                log.warning("%s: no piece hashes of our own: %s", template.name, error)
            except Exception:
                # It may be removed meanwhile; nobody waits for this, and the daemon goes on.
                log.exception("%s: no piece hashes of our own", template.name)

    async def _fingerprint(self, template: Template, published: PublishedFile) -> None:
        manifest, pieces = await self._hashes(template.content_id)
        if pieces is not None or not manifest.published.digests:
            return

        def work() -> Findings:
            return examine(
                Path(published.path), manifest.published, None, lambda _: None, from_disk=False
            )

        findings = await trio.to_thread.run_sync(work, limiter=_FINGERPRINTING)
        await self._record(template.content_id, findings)
        if findings.damaged:
            log.error(
                "%s: %s is damaged; see: ddfs template verify %s --repair",
                template.name,
                published.path,
                template.exact_name,
            )

    async def _in_catalogue(
        self, ask: Callable[[Unpack[Arguments]], T], *arguments: *Arguments
    ) -> T:
        return await trio.to_thread.run_sync(ask, *arguments, limiter=self._with.ledger_limiter)


def _said(ranges: Sequence[ByteRange]) -> str:
    shown = ", ".join(f"{each.start} to {each.end - 1}" for each in ranges[:5])
    return f"bytes {shown}" + (", …" if len(ranges) > 5 else "")
