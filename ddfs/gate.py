"""May this domain start? From the templates and the spool alone.

libvirtd asks through its hook and holds the domain meanwhile, so that ``virsh list`` hangs.
Therefore the answer comes within a bounded time, for all hooks of the host together (the
window), and nothing here can call libvirt. A fetch that ends in a volume of a pool does at its
end: should libvirtd have no worker left for that, the wait ends with the window all the same.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.image.domain import wrong_kind
from ddfs.model import SpoolState, Template
from ddfs.spool.rest import Demand
from ddfs.templates import Templates, progress_percent

# After the window has closed, hooks are answered at once until none has come for so long.
# A serial autostart or a queue of starts comes within milliseconds; a person takes longer.
QUIET_SECONDS: Final = 3.0

# The kernel is told of a change at once, and takes milliseconds.
SHOWN_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class NeededFile:
    """A file under the mount that a domain needs to start, or one that it would write to.

    ``writable``: the domain would write to it. ``is_optional``: it starts without it.
    ``device`` and ``inode`` say which file it is, where it lies elsewhere and may be a
    published template. ``is_booted``: it is a kernel or the like, which libvirt opens for writing.
    ``kind``: as :class:`ddfs.image.domain.DomainFile` has it.
    """

    path: str
    writable: bool = False
    is_optional: bool = False
    device: int = 0
    inode: int = 0
    is_booted: bool = False
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes, or no and why: one line for the person who starts the domain.

    ``pending`` are the templates on whose fetches alone a refusal rests.
    """

    allowed: bool
    message: str = ""
    pending: tuple[Template, ...] = ()


class Window:
    """The one stretch of time in which hooks of this host may wait. Pure.

    It opens with the first hook that waits and closes ``length`` seconds later; hooks that
    come after that are answered at once, until it has been quiet.
    """

    def __init__(self, length: float) -> None:
        self._length = length
        self._closes_at: float | None = None
        self._last_asked_at = 0.0

    def deadline(self, now: float) -> float:
        """Until when a hook that comes at *now* may wait; not later than *now*: not at all."""
        quiet = now - max(self._last_asked_at, self._closes_at or 0.0) >= QUIET_SECONDS
        if self._closes_at is None or quiet:
            self._closes_at = now + self._length
        self._last_asked_at = now
        return self._closes_at


class Gate:
    """Answers for the templates of one host.

    ``unseal`` makes a published file one that root can open for writing, which its mode goes on
    protecting; it raises :class:`errors.StorageError`. ``seen`` returns once everybody sees what
    a template is by now; ``makes_devices`` says whether templates become block devices on a
    primary storage (None: the default one).
    """

    def __init__(
        self,
        templates: Templates,
        templates_dir: Path,
        wait_seconds: float,
        unseal: Callable[[Path], Awaitable[None]],
        seen: Callable[[Template], Awaitable[None]],
        makes_devices: Callable[[str | None], bool],
    ) -> None:
        self._unseal = unseal
        self._seen = seen
        self._makes_devices = makes_devices
        self._templates = templates
        self._directory = templates_dir
        self._window = Window(wait_seconds)

    async def ask(self, domain: str, files: Sequence[NeededFile]) -> Verdict:
        """The verdict on *domain*; starts the fetches that it needs.

        Returns within the window. A fetch that it started goes on after a refusal, and
        after a cancellation.
        """
        try:
            needed = self.needed_templates(files)
        except errors.RequestError as error:
            return Verdict(False, str(error))
        missing = [t for t in needed if not await self._templates.confirm_published(t)]
        verdict = await self._fetched(domain, missing) if missing else Verdict(True)
        try:
            if verdict.allowed:
                # By what they are now: what was fetched may have become a device or a file.
                self.needed_templates(files)
                await self.shown(needed)
                await self._unseal_booted(files)
        except (errors.RequestError, errors.StorageError, errors.NotReadyError) as error:
            return Verdict(False, str(error))
        return verdict

    async def shown(self, templates: Sequence[Template]) -> None:
        """Return once everybody who looks sees that *templates* are published, if they are.

        libvirt's look at a file is answered by the kernel alone while that remembers it; a disk
        that was a file and is a device would then be opened as a file. Raises
        :class:`errors.NotHereYetError` for a device where that takes too long.
        """
        with trio.move_on_after(SHOWN_SECONDS):
            for template in templates:
                await self._seen(template)
            return
        for template in templates:
            published = self._templates.published(template)
            if published is not None and published.is_volume:
                raise errors.NotHereYetError(
                    f"{template.file_name} is here, and the kernel does not show it yet; try again"
                )

    async def _fetched(self, domain: str, missing: Sequence[Template]) -> Verdict:
        """The verdict once *missing* are here, or the window has closed."""
        for template in missing:
            self._templates.demand(template, Demand.START)
        deadline = self._window.deadline(trio.current_time())
        failure: errors.DdfsError | None = None
        with trio.move_on_at(deadline):
            failure = await self._wait(missing)
        return self._conclude(domain, missing, failure)

    async def _unseal_booted(self, files: Sequence[NeededFile]) -> None:
        """A kernel is opened for writing by libvirt, which starts nothing where that fails."""
        for file in files:
            template = self._template_at(file.path) if file.is_booted else None
            published = self._templates.published(template) if template is not None else None
            if published is not None:
                await self._unseal(Path(published.path))

    async def explain(self, domain: str, files: Sequence[NeededFile]) -> Verdict:
        """What :meth:`ask` would say if it did not wait; starts nothing."""
        try:
            needed = self.needed_templates(files)
        except errors.RequestError as error:
            return Verdict(False, str(error))
        missing = [t for t in needed if not await self._templates.confirm_published(t)]
        return self._conclude(domain, missing, None)

    def template_of(self, file: NeededFile) -> Template | None:
        """The template that *file* is: by its name in the pool, or as the published file."""
        if self._is_under_mount(file.path):
            return self._template_at(file.path)
        return self._templates.stored_at(file.path, file.device, file.inode)

    def problem_of(self, file: NeededFile) -> str | None:
        """Why no domain starts with *file* now, or ever, and what to do; None if one may."""
        try:
            needed = self.needed_templates([file])
        except errors.RequestError as error:
            return str(error)
        absent = [t for t in needed if self._state(t) is not SpoolState.PUBLISHED]
        return f"{self._story(absent[0])}; ddfs prefetch {absent[0].exact_name}" if absent else None

    def needed_templates(self, files: Sequence[NeededFile]) -> list[Template]:
        """The templates among *files*, each once.

        Raises :class:`errors.WritableTemplateError` for one that the domain could write to,
        :class:`errors.UnknownTemplateError` for a file in the pool that is none,
        :class:`errors.InvalidValueError` for one on a device that the domain takes for a file,
        or the other way round.
        """
        found: dict[int, Template] = {}
        for file in files:
            if not self._is_under_mount(file.path):
                self._refuse_published(file)
                continue
            template = self._template_at(file.path)
            if template is None and file.is_optional:
                continue
            if template is None:
                raise errors.UnknownTemplateError(
                    f"{file.path}: no such template; ddfs template list shows those there are"
                )
            if file.writable:
                raise _would_write(template, file.path, file.path)
            self._check_kind(file, template)
            found[template.row] = template
        return list(found.values())

    def _refuse_published(self, file: NeededFile) -> None:
        template = self._templates.stored_at(file.path, file.device, file.inode)
        if template is None:
            return
        if file.writable:
            raise _would_write(template, file.path, str(self._directory / template.file_name))
        self._check_kind(file, template)

    def _check_kind(self, file: NeededFile, template: Template) -> None:
        published = self._templates.published(template)
        is_device = published.is_volume if published else self._makes_devices(template.primary)
        kind = "block" if is_device else "file"
        if file.kind and file.kind != kind:
            path = str(self._directory / template.file_name)
            raise errors.InvalidValueError(wrong_kind(file.path, path, kind))

    def _is_under_mount(self, path: str) -> bool:
        return self._directory.parent in Path(os.path.normpath(path)).parents

    def _template_at(self, path: str) -> Template | None:
        directory, _, name = os.path.normpath(path).rpartition("/")
        if Path(directory) != self._directory:
            return None
        return self._templates.by_file_name(name)

    async def _wait(self, missing: Sequence[Template]) -> errors.DdfsError | None:
        """Until all are published, or the first that will not be."""
        for template in missing:
            try:
                await self._templates.wait_published(template)
            except errors.DdfsError as error:
                return error
        return None

    def _conclude(
        self, domain: str, missing: Sequence[Template], failure: errors.DdfsError | None
    ) -> Verdict:
        absent = [t for t in missing if self._state(t) is not SpoolState.PUBLISHED]
        if not absent:
            return Verdict(True)
        stories = ", ".join(self._story(template) for template in absent)
        if failure is not None or any(self._state(t) is SpoolState.FAILED for t in absent):
            unsigned = [t.exact_name for t in absent if self._is_not_signed(t)]
            if unsigned:
                # No start fetches it again.
                return Verdict(False, f"{stories}; mend that, then: ddfs prefetch {unsigned[0]}")
            return Verdict(False, with_advice(stories))
        advice = f"try again, or run: ddfs start {shlex.quote(domain)}"
        return Verdict(False, f"{stories}; {advice}", tuple(absent))

    def _is_not_signed(self, template: Template) -> bool:
        return self._templates.holding(template).error_kind == errors.SignatureError.kind()

    def _state(self, template: Template) -> SpoolState:
        return self._templates.holding(template).state

    def _story(self, template: Template) -> str:
        """How one template stands, in a phrase."""
        holding = self._templates.holding(template)
        if holding.state is SpoolState.FAILED and holding.error is not None:
            return f"{template.file_name} cannot be fetched: {holding.error}"
        story = f"{template.file_name} is {progress_percent(holding, template.size)} % here"
        if holding.waits_for is not None:
            story += f", {holding.waits_for} fetches it"
        elif holding.seconds_left is not None:
            story += f", about {duration(holding.seconds_left)} left"
        return story


def with_advice(stories: str) -> str:
    """Failures, and what to do about them; many say that themselves."""
    return stories if stories.endswith("try again") else f"{stories}; mend that, then try again"


def duration(seconds: float) -> str:
    """Seconds as people say them: ``20 s``, ``3 min``, ``2 h 5 min``."""
    whole = max(1, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _would_write(template: Template, path: str, backing: str) -> errors.WritableTemplateError:
    what = "a template" if path == backing else f"the template {template.file_name} itself"
    return errors.WritableTemplateError(
        f"{os.path.basename(path)} is {what} and must not be written to; make an overlay "
        f"(qemu-img create -f qcow2 -F {template.format.qemu_name} -b {shlex.quote(backing)} "
        "OVERLAY.qcow2) and give the domain that, or mark the disk <readonly/>"
    )
