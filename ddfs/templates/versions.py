"""Versions: has a source changed, and what then.

A check asks the cheapest first: the documents that decided when the source was resolved, by
conditional requests. Only where one of them is not what it was, the source is resolved again
and its hashes compared with those of the versions that are here. A source that serves an
older version of ours is a mirror that lags. An address that nothing but a typed checksum
tells about has to be judged by what its server says of the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import random
import time
from collections.abc import Mapping
from typing import Any, Final

import trio

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.model import Manifest, Template
from ddfs.names import version_name
from ddfs.templates.ports import Families, Manifests
from ddfs.templates.recorder import Resolved
from ddfs.templates.registration import Registration
from ddfs.templates.templates import Templates
from ddfs.versions import (
    SourceState,
    Validator,
    Verdict,
    Visit,
    explained,
    has_changed,
    is_same,
    is_same_content,
    modified_at,
)

log = logging.getLogger(__name__)

# Checks under way, by hand and by themselves. More would be felt by fetches and publishers.
CHECKS_AT_ONCE: Final = 8

# A source that drips must not hold up the others.
CHECK_SECONDS: Final = 60.0

# Somebody waits to hear why a fetch failed.
_EXPLAIN_SECONDS: Final = 5.0

# How often the daemon looks whose check is due: the shortest time between two is a minute.
_LOOK_SECONDS: Final = 20.0

# By so much earlier or later, so that the hosts of a site do not come all at once.
_JITTER: Final = 0.1

# A source that could not be asked is asked again sooner, but not at once.
_RETRY_SECONDS: Final = 900.0

# What a document says may be long; a person and the catalogue get this much.
_MAX_MESSAGE: Final = 500


class Versions:
    """Checks, and new versions, for the templates of one host."""

    def __init__(
        self,
        templates: Templates,
        families: Families,
        manifests: Manifests,
        *,
        ledger_limiter: trio.CapacityLimiter,
    ) -> None:
        self._templates = templates
        self._families = families
        self._manifests = manifests
        self._limiter = ledger_limiter
        self._checking = trio.CapacityLimiter(CHECKS_AT_ONCE)
        self._due: dict[str, float] = {}

    async def load(self) -> None:
        """Read what earlier checks came to."""
        states = await trio.to_thread.run_sync(self._families.states, limiter=self._limiter)
        self._templates.source_states.update(states)

    def state(self, family: str) -> SourceState:
        """What is known of the source of a family; from memory."""
        return self._templates.source_states.get(family, SourceState())

    # -- checking --------------------------------------------------------------------------

    async def check(self, name: str) -> SourceState:
        """Ask whether the source of a family has changed, and write down the answer.

        A source that cannot be asked is an answer, too. Raises
        :class:`errors.UnknownTemplateError`.
        """
        family = self._templates.newest(name).family
        async with self._templates.changing(family), self._checking:
            template = self._templates.newest(family)
            before = self.state(family)
            try:
                with trio.fail_after(CHECK_SECONDS):
                    state = await self._ask(template, before)
            except trio.TooSlowError:
                text = f"no answer within {CHECK_SECONDS:.0f} s"
                state = dataclasses.replace(before, verdict=Verdict.UNREACHABLE, message=text)
            except errors.DdfsError as error:
                text = str(error)[:_MAX_MESSAGE]
                state = dataclasses.replace(before, verdict=Verdict.UNREACHABLE, message=text)
            state = dataclasses.replace(state, checked_at=time.time())
            await self._record(family, state)
        if state.verdict is not before.verdict:
            log.info(
                "%s: its source: %s %s",
                family,
                state.verdict and state.verdict.value,
                text_of(state),
            )
        return state

    async def _ask(self, template: Template, before: SourceState) -> SourceState:
        """The new state; raises why the source cannot be asked."""
        declared = self._templates.declaration(template)
        unchanged = dataclasses.replace(before, verdict=Verdict.UNCHANGED, message="")
        if before.seen and all(before.seen) and not _is_of_another(template, declared, before):
            if await self._are_same(declared, before.seen):
                # Found changed before, and nothing has moved since then: it still is.
                return before if before.verdict is Verdict.CHANGED else unchanged
        elif _is_remote(declared) and _is_pinned(template, declared):
            visit = await self._revisit(declared, _seen_of_image(template, declared, before))
            return _judged(template, declared, before, visit)
        resolved = await self._resolve_as_published(declared)
        older = await self._older_version(template.family, resolved.manifest)
        if older is None:
            text = f"there is a newer version; take it with: ddfs template update {template.family}"
            return SourceState(Verdict.CHANGED, message=text, seen=resolved.seen)
        if older.content_id != template.content_id:
            text = f"it serves the older version {older.exact_name}, as a mirror that lags does"
            return SourceState(Verdict.UNCHANGED, message=text, seen=resolved.seen)
        if resolved.is_looked_at and declared.checksum is not None:
            # A typed checksum is the same whatever is there now: it tells nothing.
            return _judged(template, declared, before, Visit(resolved.seen[0]))
        if not resolved.seen and _is_remote(declared) and declared.checksum is not None:
            visit = await self._revisit(declared, _seen_of_image(template, declared, before))
            return _judged(template, declared, before, visit)
        return SourceState(Verdict.UNCHANGED, seen=resolved.seen)

    async def _are_same(self, declared: Declaration, seen: tuple[Validator, ...]) -> bool:
        """Whether all certainly are; one that cannot be asked is not, and resolving says why."""
        try:
            inquiry = await self._templates.inquiry(declared)
            for before in seen:
                if not is_same(before, await inquiry.revisit(before)):
                    return False
        except errors.MirrorError:
            return False
        return True

    async def _revisit(self, declared: Declaration, before: Validator) -> Visit:
        return await (await self._templates.inquiry(declared)).revisit(before)

    async def _resolve_as_published(self, declared: Declaration) -> Resolved:
        """What the source says now, also where a typed checksum does not agree any more."""
        try:
            return await self._templates.resolve(declared)
        except errors.DocumentError:
            if declared.checksum is None:
                raise
            return await self._templates.resolve(dataclasses.replace(declared, checksum=None))

    async def _older_version(self, family: str, found: Manifest) -> Template | None:
        """The newest version of a family that has the content of *found*."""
        for template in reversed(self._templates.versions(family)):
            if found.is_unpinned and found.signature is not None:
                # Whichever mirror was looked at: one signature is of one file.
                if found.signature == template.signature or found.content_id == template.content_id:
                    return template
                continue
            known = await trio.to_thread.run_sync(
                self._manifests.manifest, template.content_id, limiter=self._limiter
            )
            if is_same_content(known, found):
                return template
        return None

    async def _record(self, family: str, state: SourceState) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(
                self._families.record_state, family, state, limiter=self._limiter
            )
        self._templates.source_states[family] = state

    async def explain(self, content_id: str, error: errors.DdfsError) -> errors.DdfsError:
        """*error*, which ended a fetch; it says so where the source has changed meanwhile."""
        if not isinstance(error, errors.ChecksumError | errors.MirrorsExhaustedError):
            return error
        for template in self._templates.with_content(content_id):
            if template is not self._templates.newest(template.family):
                continue
            with trio.move_on_after(_EXPLAIN_SECONDS), contextlib.suppress(errors.DdfsError):
                state = await self.check(template.family)
                if state.verdict is Verdict.CHANGED:
                    return explained(error, template.family)
        return error

    # -- new versions ----------------------------------------------------------------------

    async def update(
        self, name: str, changes: Mapping[str, Any] | None = None
    ) -> tuple[Template, bool]:
        """Make a version of what the source is now; the template, and whether it is new.

        *changes* are keys of the declaration's plain form that are different from now on.
        A source that has not changed, or that serves an older version, makes nothing.
        Asked twice at once, one version is made.
        """
        family = self._templates.newest(name).family
        async with self._templates.changing(family):
            template = self._templates.newest(family)
            declared = self._templates.declaration(template)
            if changes:
                plain = declared.as_plain()
                if {"keyring", "no_keyring"} & changes.keys():
                    plain = {k: v for k, v in plain.items() if k not in ("keyring", "no_keyring")}
                declared = Declaration.from_plain({**plain, **changes})
            return await self._advance(template, declared)

    async def declare(self, name: str, declaration: Declaration) -> tuple[Template, bool]:
        """Make *name* what is declared: a template, a new version, or the same with other
        words. The template, and whether it is new.
        """
        if not self._templates.versions(name):
            return await self._templates.add(Registration(name, declaration)), True
        async with self._templates.changing(name):
            template = self._templates.newest(name)
            if _asks_the_same(self._templates.declaration(template), declaration):
                signature = template.signature
                return await self._templates.declare(template, declaration, signature), False
            return await self._advance(template, declaration)

    async def _advance(self, template: Template, declared: Declaration) -> tuple[Template, bool]:
        """The caller holds ``changing``."""
        async with self._templates.registering:
            return await self._advance_now(template, declared)

    async def _advance_now(
        self, template: Template, declared: Declaration
    ) -> tuple[Template, bool]:
        family = template.family
        resolved = await self._templates.resolve(declared)
        same = await self._older_version(family, resolved.manifest)
        if same is None:
            number = 1 + await trio.to_thread.run_sync(
                self._families.last_version, family, limiter=self._limiter
            )
            fresh = Registration(version_name(family, number), declared)
            made = await self._templates.register(fresh, resolved)
            return made, True
        if declared.format not in (None, same.format):
            raise errors.TemplateExistsError(
                f"{same.name} has this content already, as {same.format.value}"
            )
        before = self.state(family)
        is_known = any(each.url == declared.source for each in before.seen)
        is_typed = resolved.is_looked_at and declared.checksum is not None
        if same.name == template.name and is_typed and is_known:
            judged = _judged(template, declared, before, Visit(resolved.seen[0]))
            if judged.verdict is Verdict.CHANGED:
                await self._record(family, dataclasses.replace(judged, checked_at=time.time()))
                raise errors.RequestError(f"{family}: {judged.message}")
        if same.content_id == resolved.manifest.content_id:
            merge = functools.partial(
                self._manifests.merge_mirrors, same.content_id, resolved.manifest
            )
            await trio.to_thread.run_sync(merge, limiter=self._limiter)
        # That of an older version, which a mirror that lags serves, is not of this one.
        is_newest = same.name == template.name
        signature = resolved.manifest.signature if is_newest else template.signature
        if (self._templates.declaration(template), template.signature) != (declared, signature):
            template = await self._templates.declare(template, declared, signature)
        seen = resolved.seen or await self._seen_now(template, declared)
        await self._record(family, SourceState(Verdict.UNCHANGED, time.time(), "", seen))
        return template, False

    async def _seen_now(self, template: Template, declared: Declaration) -> tuple[Validator, ...]:
        """What the server of an image says of it, where it says anything."""
        if _is_remote(declared):
            known = Validator(declared.source, size=_size_at_source(template))
            with contextlib.suppress(errors.MirrorError):
                return (_remembering((await self._revisit(declared, known)).now, known),)
        return ()

    # -- by itself -------------------------------------------------------------------------

    async def run(self) -> None:
        """Check each source every ``check_every`` of its declaration, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                for family in self._whose_turn(time.time()):
                    nursery.start_soon(self._check_by_itself, family)
                await trio.sleep(_LOOK_SECONDS)

    def _whose_turn(self, now: float) -> list[str]:
        """The families whose check is due; each is given its next time."""
        due = []
        for family in self._templates.families():
            newest = self._templates.newest(family)
            every = self._templates.declaration(newest).check_every
            if every is None:
                self._due.pop(family, None)
                continue
            since = max(self.state(family).checked_at or 0.0, newest.added_at)
            jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 (no secret)
            planned = self._due.setdefault(family, since + every * jitter)
            # Also where the time between two was made shorter since it was planned.
            if min(planned, since + every * (1 + _JITTER)) <= now:
                due.append(family)
                self._due[family] = now + every * jitter
        return due

    async def _check_by_itself(self, family: str) -> None:
        try:
            state = await self.check(family)
        except errors.DdfsError as error:
            # Removed meanwhile, or the catalogue cannot be written.
            log.warning("%s: its source was not checked: %s", family, error)
            return
        except Exception:
            # A bug in what reads documents from outside must not end the daemon.
            log.exception("%s: its source was not checked", family)
            return
        if state.verdict is Verdict.UNREACHABLE:
            log.warning("%s: its source cannot be asked: %s", family, state.message)
            retry = time.time() + _RETRY_SECONDS
            self._due[family] = min(self._due.get(family, retry), retry)


def text_of(state: SourceState) -> str:
    """The message in brackets, or nothing."""
    return f"({state.message})" if state.message else ""


def _is_remote(declared: Declaration) -> bool:
    return declared.source.startswith(("http://", "https://"))


def _is_pinned(template: Template, declared: Declaration) -> bool:
    """Whether only the operator says what the bytes have to be: nobody else can be asked."""
    return declared.unverified and template.signature is None


def _size_at_source(template: Template) -> int:
    return template.size if template.packed_size is None else template.packed_size


def _is_of_another(template: Template, declared: Declaration, before: SourceState) -> bool:
    """Whether an earlier ddfs remembered another file than the template's, and called it that."""
    sizes = {each.size for each in before.seen if each.url == declared.source}
    return not sizes <= {None, _size_at_source(template)}


def _seen_of_image(template: Template, declared: Declaration, before: SourceState) -> Validator:
    """What is known of the image at the source, so that it can be asked for changes."""
    size = _size_at_source(template)
    known = next((each for each in before.seen if each.url == declared.source), None)
    if not known or known.size not in (None, size):
        return Validator(declared.source, size=size)
    return dataclasses.replace(known, size=size)


def _judged(
    template: Template, declared: Declaration, before: SourceState, visit: Visit
) -> SourceState:
    """The state by what the server of the image says of it, and nothing else."""
    known = _seen_of_image(template, declared, before)
    now = visit.now or known
    changed = not visit.is_not_modified and has_changed(known, visit.now)
    if not known:
        # Nobody looked before: what was written after it was registered is another file.
        changed = changed or (modified_at(now.last_modified) or 0.0) > template.added_at
    if not changed:
        return SourceState(Verdict.UNCHANGED, seen=(_remembering(now, known),))
    text = (
        "the file there is another one by its server's word; take it with: ddfs template update "
        f"{template.family}"
    )
    if declared.checksum is not None:
        text += " --checksum ALG:HEX"
    return SourceState(Verdict.CHANGED, message=text, seen=(known,))


def _remembering(now: Validator, known: Validator) -> Validator:
    size = now.size if now.size is not None else known.size
    return dataclasses.replace(now, url=known.url, size=size)


def _asks_the_same(one: Declaration, other: Declaration) -> bool:
    """Whether two declarations have the same source, checked in the same way."""
    return dataclasses.replace(one, check_every=None) == dataclasses.replace(
        other, check_every=None
    )
