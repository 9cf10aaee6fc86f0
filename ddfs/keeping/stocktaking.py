"""Is what is on disk what the catalogue says? Each difference is mended, or named."""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import trio

from ddfs import errors
from ddfs.model import ImageFormat, PublishedFile, Template

log = logging.getLogger(__name__)

# As model.Template.published_name makes them.
_OURS: Final = re.compile(
    rf"[^/]+@[0-9a-f]{{12}}\.({'|'.join(known.value for known in ImageFormat)})"
)


@dataclass(frozen=True, slots=True)
class Difference:
    """``subject`` is a path or a name; ``remedy`` what to do, or what was done if ``mended``."""

    subject: str
    problem: str
    remedy: str
    mended: bool


class Spool(Protocol):
    """What is published, by what the daemon knows."""

    def stored(self) -> list[tuple[str, str, PublishedFile]]:
        """Every published file: content, primary storage, file."""

    def is_fetching(self, content_id: str) -> bool:
        """Whether a fetch runs."""

    async def confirm_published(self, content_id: str) -> PublishedFile | None:
        """Look at its files again; those that are gone count no more."""


class Names(Protocol):
    """The registered templates."""

    def all(self) -> Sequence[Template]:
        """All."""


class Storage(Protocol):
    """A primary storage."""

    @property
    def name(self) -> str:
        """What the settings call it."""

    @property
    def path(self) -> Path:
        """Its directory."""

    @property
    def is_shared(self) -> bool:
        """Whether other hosts have files there too."""

    def is_intact(self, published: PublishedFile) -> bool:
        """Whether it is still the file that was published."""

    def leftovers(self) -> Mapping[str, int]:
        """Partial data that no fetch works on: bytes by content."""

    def discard(self, content_id: str) -> None:
        """Remove the partial data of a content."""


class Stocktaking:
    """For one host."""

    def __init__(self, spool: Spool, names: Names, storages: Sequence[Storage]) -> None:
        self._spool = spool
        self._names = names
        self._storages = {storage.name: storage for storage in storages}

    async def compare(self, *, fix: bool) -> list[Difference]:
        """All differences; with *fix* those are mended that can be without losing anything."""
        found = []
        for storage in self._storages.values():
            try:
                found += await self._published(storage, fix)
                found += await self._leftovers(storage, fix)
                if not storage.is_shared:
                    found += await self._strangers(storage)
            except errors.DdfsError as error:
                found.append(Difference(str(storage.path), str(error), "mend that", False))
        return found

    async def at_start(self) -> None:
        """Mend what can be mended, and log it all."""
        for difference in await self.compare(fix=True):
            log.warning("%s: %s; %s", difference.subject, difference.problem, difference.remedy)

    async def _published(self, storage: Storage, fix: bool) -> list[Difference]:
        found = []
        for content_id, primary, file in self._spool.stored():
            if primary != storage.name:
                continue
            if await trio.to_thread.run_sync(storage.is_intact, file):
                continue
            if fix:
                await self._spool.confirm_published(content_id)
            found.append(
                Difference(
                    file.path,
                    "the published file is gone or was changed",
                    "it is fetched again when it is used"
                    if fix
                    else "ddfs doctor --fix lets it be fetched again when it is used",
                    fix,
                )
            )
        return found

    async def _leftovers(self, storage: Storage, fix: bool) -> list[Difference]:
        known = {template.content_id for template in self._names.all()}
        found = []
        for content_id, size in (await trio.to_thread.run_sync(storage.leftovers)).items():
            if content_id in known or self._spool.is_fetching(content_id):
                continue
            if fix:
                await trio.to_thread.run_sync(storage.discard, content_id)
            found.append(
                Difference(
                    f"{storage.path}: {content_id}",
                    f"{size} bytes of an unfinished download that no template has",
                    "deleted" if fix else "ddfs doctor --fix deletes it",
                    fix,
                )
            )
        return found

    async def _strangers(self, storage: Storage) -> list[Difference]:
        known = {file.path for _, _, file in self._spool.stored()}
        templates = {template.published_name: template for template in self._names.all()}

        def look() -> list[Difference]:
            try:
                paths = sorted(storage.path.iterdir())
                return [
                    difference
                    for path in paths
                    if _OURS.fullmatch(path.name) and str(path) not in known
                    if (difference := _stranger(path, templates.get(path.name))) is not None
                ]
            except OSError as error:
                raise errors.StorageError(f"{storage.path}: {error.strerror}") from error

        return await trio.to_thread.run_sync(look)


def _stranger(path: Path, template: Template | None) -> Difference | None:
    """What is wrong with a file that the catalogue does not have; *template* has this name. What
    may be that template is adopted when the template is used.
    """
    if template is None:
        problem = "looks like a template's file, and no template has it"
        remedy = "register its template again, or delete it (chattr -i first)"
        return Difference(str(path), problem, remedy, False)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    has_size = not template.size_is_known or status.st_size == template.size
    if stat.S_ISREG(status.st_mode) and has_size:
        return None
    problem = "stands where a template's file belongs, and cannot be it"
    return Difference(str(path), problem, "move it away (chattr -i first)", False)
