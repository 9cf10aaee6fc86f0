"""Makes room: looks who uses what, and deletes the longest unused of what nobody does.

How a version that is about to be used is not deleted: the spool counts uses; the count is
taken before anybody is looked at, and a file whose count has moved since stays. So whoever
began before the look is seen by it, and whoever begins later moves the count: a domain's
start through the gate, and everybody who follows the name in the template pool. Only an
overlay that is made by hand, by the path in primary storage, within the second of the look,
is not seen. Where other hosts share the storage, they are asked as well: see
:mod:`ddfs.keeping.agreement`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from ddfs import errors
from ddfs.keeping.judgement import (
    GRACE_SECONDS,
    Judgement,
    StoredFile,
    Uses,
    choose,
    doubt_about,
    judge,
    used_by,
    users_of,
)
from ddfs.keeping.looking import Look
from ddfs.keeping.sharing import Sharing

log = logging.getLogger(__name__)

# libvirt's own refresh of the pool follows all names and so spoils a look.
_TRIES: Final = 3


class Spool(Protocol):
    """The way to delete what is published."""

    async def evict(self, content_id: str, primary: str, uses: int) -> bool:
        """Delete the file on *primary*, unless it was used since :meth:`uses` said *uses*."""


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection removed, and why the rest stays."""

    removed: tuple[StoredFile, ...]
    kept: tuple[Judgement, ...]


class Collector:
    """For one host. *sharing* are the primary storages that other hosts use too, by name;
    what was used for the last time less than *grace_seconds* ago always stays.
    """

    def __init__(
        self,
        spool: Spool,
        look: Look,
        *,
        sharing: Mapping[str, Sharing] | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._spool = spool
        self._look = look
        self._sharing = sharing or {}
        self._grace_seconds = grace_seconds
        self._lock = trio.Lock()

    async def look(self, unused_seconds: float = 0.0, *, hearsay: bool = True) -> list[Judgement]:
        """A judgement on every published file, the longest unused first; deletes nothing, and
        asks no other host: what those last wrote down counts with *hearsay*.
        """
        files = await self._with_others(self._look.stored(), hearsay)
        if not files:
            return []
        uses = await self._look.uses([file.path for file in files])
        seconds = self._unused_seconds(unused_seconds)
        return judge(files, uses, time.time(), unused_seconds=seconds)

    def _unused_seconds(self, asked: float) -> float:
        return max(asked, self._grace_seconds)

    async def _with_others(
        self, files: Sequence[StoredFile], hearsay: bool = False
    ) -> list[StoredFile]:
        """With what is known of the hosts that share their storage."""
        found = []
        for primary, group in _by_primary(files):
            sharing = self._sharing.get(primary)
            found += group if sharing is None else await sharing.known(group, hearsay=hearsay)
        return found

    @asynccontextmanager
    async def freed(self, content_id: str) -> AsyncIterator[None]:
        """Inside, nobody on any host uses the files of a content, nor comes to.

        Raises :class:`errors.TemplateInUseError` when somebody does, and when that cannot be
        said: as strictly as a collection.
        """
        async with self._lock, AsyncExitStack() as stack:
            files = [file for file in self._look.stored() if file.content_id == content_id]
            files = await self._with_others(files)
            uses = await self._look.uses([file.path for file in files]) if files else Uses()
            for file in files:
                users = users_of(file, uses)
                _refuse(file, used_by(sorted(users)) if users else doubt_about(file, uses))
            for primary, group in _by_primary(files):
                sharing = self._sharing.get(primary)
                if sharing is not None:
                    # Whoever asks here does not see what was just begun there.
                    asked = sharing.asked(group, self._grace_seconds)
                    for consent in await stack.enter_async_context(asked):
                        _refuse(consent.file, consent.objection)
                        agreed = await stack.enter_async_context(sharing.committed(consent))
                        _refuse(consent.file, None if agreed else "used meanwhile")
            yield

    async def collect(self, unused_seconds: float = 0.0) -> Collection:
        """Delete everything that may go and was not used for *unused_seconds*."""
        async with self._lock:
            removed: list[StoredFile] = []
            judgements: list[Judgement] = []
            for _ in range(_TRIES):
                judgements = await self.look(unused_seconds, hearsay=False)
                chosen = [j.file for j in judgements if j.kept_because is None]
                gone, refused = await self._delete(chosen, self._unused_seconds(unused_seconds))
                removed += gone
                judgements = [refused.get(j.file.path, j) for j in judgements]
                if len(gone) + len(refused) == len(chosen):
                    break
            paths = {file.path for file in removed}
            kept = [j for j in judgements if j.file.path not in paths]
            return Collection(tuple(removed), tuple(kept))

    async def make_room(self, primary: str, missing: int, content_id: str) -> bool:
        """Free *missing* bytes on *primary* for *content_id*, the longest unused first.

        Whether anything is gone. When all that may go would not do, nothing does.
        """
        async with self._lock:
            refused: dict[str, Judgement] = {}
            for attempt in range(_TRIES):
                # Hearsay spares other hosts the question, until it would not do.
                hearsay = attempt == 0
                judgements = [
                    refused.get(j.file.path, j)
                    for j in await self.look(hearsay=hearsay)
                    if j.file.content_id != content_id
                ]
                chosen = choose(judgements, primary, missing)
                if sum(file.bytes for file in chosen) < missing:
                    if hearsay and primary in self._sharing:
                        continue
                    log.info("%s: no room can be made: %s", primary, _first_reason(judgements))
                    return False
                gone, objections = await self._delete(chosen, self._grace_seconds)
                if gone:
                    return True
                refused.update(objections)
            return False

    async def _delete(
        self, files: Sequence[StoredFile], unused_seconds: float
    ) -> tuple[list[StoredFile], dict[str, Judgement]]:
        """Those that are gone, and why other hosts want some to stay, by path."""
        gone: list[StoredFile] = []
        refused: dict[str, Judgement] = {}
        for primary, group in _by_primary(files):
            sharing = self._sharing.get(primary)
            if sharing is None:
                gone += [file for file in group if await self._evict(file)]
                continue
            try:
                async with sharing.asked(group, unused_seconds) as consents:
                    for consent in consents:
                        if consent.objection is not None:
                            judgement = Judgement(consent.file, consent.objection)
                            refused[consent.file.path] = judgement
                            continue
                        async with sharing.committed(consent) as agreed:
                            if agreed and await self._evict(consent.file):
                                gone.append(consent.file)
            except errors.DdfsError as error:
                refused.update({f.path: Judgement(f, f"perhaps used: {error}") for f in group})
        return gone, refused

    async def _evict(self, file: StoredFile) -> bool:
        try:
            if not await self._spool.evict(file.content_id, file.primary, file.uses):
                return False
        except errors.DdfsError as error:
            log.warning("%s", error)
            return False
        log.info("%s: deleted, nobody needs it", file.path)
        return True


def _refuse(file: StoredFile, reason: str | None) -> None:
    if reason is not None:
        raise errors.TemplateInUseError(f"{file.path} is {reason}")


def _by_primary(files: Sequence[StoredFile]) -> list[tuple[str, list[StoredFile]]]:
    primaries = dict.fromkeys(file.primary for file in files)
    return [(primary, [f for f in files if f.primary == primary]) for primary in primaries]


def _first_reason(judgements: Iterable[Judgement]) -> str:
    for judgement in judgements:
        if judgement.kept_because is not None:
            return f"{judgement.file.path} is kept: {judgement.kept_because}"
    return "there is nothing to delete"
