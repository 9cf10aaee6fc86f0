"""May this file go? Pure: facts in, a judgement for each file out.

A file may go when nothing speaks for keeping it. What cannot be looked at speaks for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

# From a yes of the gate, or the end of a fetch, to the domain or overlay that can be seen.
GRACE_SECONDS: Final = 60.0

# In a reason; a template that a thousand overlays stand on need not name them all.
_SHOWN_USERS: Final = 3


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A published file: one content on one primary storage.

    ``names`` are the templates that have this content, none for one that was removed;
    ``last_used_at`` is in POSIX seconds, 0 for never; ``uses`` is the spool's count when this
    was written down. Where hosts share the storage, ``users_elsewhere`` are those on the others,
    and ``doubt`` is why nobody knows them all.
    """

    content_id: str
    primary: str
    path: str
    bytes: int
    names: tuple[str, ...]
    last_used_at: float
    is_pinned: bool
    uses: int = 0
    users_elsewhere: Sequence[str] = ()
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Uses:
    """Who uses what: by content, where the name in the template pool is used, and by path,
    where a file is. ``obstacles`` are what could not be looked at, and why.
    """

    of_content: Mapping[str, Sequence[str]] = field(default_factory=dict)
    of_path: Mapping[str, Sequence[str]] = field(default_factory=dict)
    obstacles: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """``kept_because`` is None for a file that may go."""

    file: StoredFile
    kept_because: str | None


def judge(
    files: Iterable[StoredFile], uses: Uses, now: float, *, unused_seconds: float = GRACE_SECONDS
) -> list[Judgement]:
    """A judgement for each of *files*, the longest unused first."""
    ordered = sorted(files, key=lambda file: (file.last_used_at, file.primary, file.content_id))
    return [Judgement(file, _reason(file, uses, now, unused_seconds)) for file in ordered]


def _reason(file: StoredFile, uses: Uses, now: float, unused_seconds: float) -> str | None:
    if file.is_pinned:
        return "pinned"
    users = users_of(file, uses)
    if users:
        return used_by(users)
    # A clock that was set back must not make everything look unused for long, nor new.
    if abs(now - file.last_used_at) < unused_seconds:
        return f"used {max(0, now - file.last_used_at):.0f} s ago"
    return doubt_about(file, uses)


def users_of(file: StoredFile, uses: Uses) -> list[str]:
    """Who needs it, as far as that could be looked at."""
    here = [*uses.of_path.get(file.path, ()), *uses.of_content.get(file.content_id, ())]
    return list(dict.fromkeys([*here, *file.users_elsewhere]))


def used_by(users: Sequence[str]) -> str:
    """The reason that they are."""
    more = len(users) - _SHOWN_USERS
    return f"used by {', '.join(users[:_SHOWN_USERS])}" + (f" and {more} more" if more > 0 else "")


def doubt_about(file: StoredFile, uses: Uses) -> str | None:
    """What could not be looked at, so that somebody may need it; None when all was."""
    return f"perhaps used: {uses.obstacles[0]}" if uses.obstacles else file.doubt


def choose(judgements: Iterable[Judgement], primary: str, wanted: int) -> list[StoredFile]:
    """Of what may go from *primary*, the longest unused that come to *wanted* bytes.

    All that may go, if even that is less. *judgements* are in the order of :func:`judge`.
    """
    chosen: list[StoredFile] = []
    freed = 0
    for judgement in judgements:
        if freed >= wanted:
            break
        if judgement.kept_because is None and judgement.file.primary == primary:
            chosen.append(judgement.file)
            freed += judgement.file.bytes
    return chosen
