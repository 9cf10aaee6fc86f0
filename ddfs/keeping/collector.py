"""Makes room: looks who uses what, and deletes the longest unused of what nobody does.

How a version that is about to be used is not deleted: the spool counts uses; the count is
taken before anybody is looked at, and a file whose count has moved since stays. So whoever
began before the look is seen by it, and whoever begins later moves the count: a domain's
start through the gate, and everybody who follows the name in the template pool. Only an
overlay that is made by hand, by the path in primary storage, within the second of the look,
is not seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio

from ddfs import errors
from ddfs.image.paths import Mountpoint
from ddfs.keeping.judgement import GRACE_SECONDS, Judgement, StoredFile, Uses, choose, judge
from ddfs.keeping.uses import Inventory, Pool, find_uses
from ddfs.model import PublishedFile, Template

log = logging.getLogger(__name__)

# libvirtd may hang, and so may a file system that a pool is on: nothing is deleted then. More
# than the default of gate.wait, in which libvirtd answers nobody.
LOOK_SECONDS: Final = 60.0

# libvirt's own refresh of the pool follows all names and so spoils a look.
_TRIES: Final = 3

_look_limiter = trio.CapacityLimiter(1)


class Spool(Protocol):
    """What is published, and the way to delete it."""

    def stored(self) -> list[tuple[str, str, PublishedFile]]:
        """Every published file: content, primary storage, file."""

    def uses(self, content_id: str) -> int:
        """How often it was used."""

    async def evict(self, content_id: str, primary: str, uses: int) -> bool:
        """Delete the file on *primary*, unless it was used since :meth:`uses` said *uses*."""


class Names(Protocol):
    """The registered templates."""

    def all(self) -> Sequence[Template]:
        """All."""

    def with_content(self, content_id: str) -> Sequence[Template]:
        """All names of one content."""


class Records(Protocol):
    """Pins and last uses, from memory."""

    def is_pinned(self, row: int) -> bool:
        """Whether the template of *row* is pinned."""

    def last_used_at(self, content_id: str) -> float:
        """In POSIX seconds, 0 for never."""


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection removed, and why the rest stays."""

    removed: tuple[StoredFile, ...]
    kept: tuple[Judgement, ...]


class Collector:
    """For one host. ``take_inventory`` asks libvirt; *shared* are primary storages that other
    hosts use too.
    """

    def __init__(
        self,
        spool: Spool,
        names: Names,
        records: Records,
        take_inventory: Callable[[], Awaitable[Inventory]],
        mountpoint: Path,
        templates_dir: Path,
        *,
        shared: Set[str] = frozenset(),
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._spool = spool
        self._names = names
        self._records = records
        self._take_inventory = take_inventory
        self._mountpoint = mountpoint
        self._templates_dir = templates_dir
        self._shared = shared
        self._grace_seconds = grace_seconds
        self._lock = trio.Lock()

    async def look(self, unused_seconds: float | None = None) -> list[Judgement]:
        """A judgement on every published file, the longest unused first; deletes nothing."""
        files = self._files()
        if not files:
            return []
        uses = await self._uses([file.path for file in files])
        seconds = self._grace_seconds if unused_seconds is None else unused_seconds
        return judge(files, uses, time.time(), unused_seconds=seconds)

    async def users_of(self, content_id: str) -> list[str]:
        """Who needs the published files of a content, as far as that can be looked at."""
        paths = [file.path for each, _, file in self._spool.stored() if each == content_id]
        if not paths:
            return []
        uses = await self._uses(paths)
        found = [user for path in paths for user in uses.of_path.get(path, ())]
        return list(dict.fromkeys([*found, *uses.of_content.get(content_id, ())]))

    async def collect(self, unused_seconds: float | None = None) -> Collection:
        """Delete everything that may go and was not used for *unused_seconds*."""
        async with self._lock:
            removed: list[StoredFile] = []
            judgements: list[Judgement] = []
            for _ in range(_TRIES):
                judgements = await self.look(unused_seconds)
                chosen = [j.file for j in judgements if j.kept_because is None]
                gone = await self._evict(chosen)
                removed += gone
                if len(gone) == len(chosen):
                    break
            kept = [j for j in judgements if j.file not in removed]
            return Collection(tuple(removed), tuple(kept))

    async def make_room(self, primary: str, missing: int, content_id: str) -> bool:
        """Free *missing* bytes on *primary* for *content_id*, the longest unused first.

        Whether anything is gone. When all that may go would not do, nothing does.
        """
        async with self._lock:
            for _ in range(_TRIES):
                judgements = await self.look()
                chosen = choose(
                    (j for j in judgements if j.file.content_id != content_id), primary, missing
                )
                if sum(file.bytes for file in chosen) < missing:
                    log.info(
                        "primary %s: no room can be made: %s", primary, _first_reason(judgements)
                    )
                    return False
                if await self._evict(chosen):
                    return True
            return False

    async def _evict(self, files: Sequence[StoredFile]) -> list[StoredFile]:
        gone = []
        for file in files:
            try:
                if not await self._spool.evict(file.content_id, file.primary, file.uses):
                    continue
            except errors.DdfsError as error:
                log.warning("%s", error)
                continue
            log.info("%s: deleted, nobody needs it", file.path)
            gone.append(file)
        return gone

    def _files(self) -> list[StoredFile]:
        files = []
        for content_id, primary, published in self._spool.stored():
            named = self._names.with_content(content_id)
            files.append(
                StoredFile(
                    content_id=content_id,
                    primary=primary,
                    path=published.path,
                    bytes=published.size,
                    names=tuple(sorted(template.name for template in named)),
                    last_used_at=self._records.last_used_at(content_id),
                    is_pinned=any(self._records.is_pinned(t.row) for t in named),
                    uses=self._spool.uses(content_id),
                    is_shared=primary in self._shared,
                )
            )
        return files

    async def _uses(self, paths: Sequence[str]) -> Uses:
        contents = {t.file_name: t.content_id for t in self._names.all()}
        try:
            with trio.fail_after(LOOK_SECONDS):
                inventory = await self._take_inventory()
                return await trio.to_thread.run_sync(
                    partial(self._find, inventory, contents, paths),
                    limiter=_look_limiter,
                    abandon_on_cancel=True,
                )
        except trio.TooSlowError:
            return Uses(obstacles=(f"nobody could say within {LOOK_SECONDS:.0f} s",))
        except errors.LibvirtError as error:
            return Uses(obstacles=(str(error),))

    def _find(
        self, inventory: Inventory, contents: Mapping[str, str], paths: Sequence[str]
    ) -> Uses:
        pool = Pool(Mountpoint(str(self._mountpoint)), str(self._templates_dir), contents)
        return find_uses(inventory, pool, paths)


def _first_reason(judgements: Sequence[Judgement]) -> str:
    for judgement in judgements:
        if judgement.kept_because is not None:
            return f"{judgement.file.path} is kept: {judgement.kept_because}"
    return "there is nothing to delete"
