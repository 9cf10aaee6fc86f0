"""Has a source changed? What is kept of an answer, and how two answers compare. Pure.

Weak evidence never makes a change: entity tags that differ between two servers of one file,
or a file that is older than the one that was seen, are how mirrors that lag look.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ddfs import errors
from ddfs.model import Manifest


class Verdict(enum.Enum):
    """What a check of a source came to."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    UNREACHABLE = "cannot be asked"


@dataclass(frozen=True, slots=True)
class Validator:
    """What a server said of one address: RFC 9110 section 8.8, and the size in bytes.

    ``etag`` and ``last_modified`` are the fields as they came, None where there were none.
    """

    url: str
    etag: str | None = None
    last_modified: str | None = None
    size: int | None = None

    def __bool__(self) -> bool:
        """Whether there is anything to ask by."""
        return bool(self.etag or self.last_modified)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """From what :func:`dataclasses.asdict` made."""
        return cls(**plain)


@dataclass(frozen=True, slots=True)
class Visit:
    """The answer to a conditional request. ``is_not_modified``: the server says so (304)."""

    now: Validator
    is_not_modified: bool = False


@dataclass(frozen=True, slots=True)
class SourceState:
    """What is known of the source of a family of versions.

    ``verdict`` and ``checked_at`` (POSIX seconds) are of the last check, None before the
    first. ``message`` is for people. ``seen`` are the addresses that decide, as they were
    when the newest version was resolved or found unchanged.
    """

    verdict: Verdict | None = None
    checked_at: float | None = None
    message: str = ""
    seen: tuple[Validator, ...] = ()


def is_same(before: Validator, visit: Visit) -> bool:
    """Whether an address certainly serves what it served before."""
    if visit.is_not_modified:
        return True
    now = visit.now
    if before.size is not None and now.size is not None and before.size != now.size:
        return False
    if before.etag and now.etag:
        return before.etag == now.etag
    return bool(before.last_modified) and before.last_modified == now.last_modified


def has_changed(before: Validator, now: Validator) -> bool:
    """Whether an address that nothing else tells about serves another file.

    A server with an older file is a mirror that lags. Where both times are known and the
    same, and so is the size, the entity tag alone is that of another server.
    """
    times = modified_at(before.last_modified), modified_at(now.last_modified)
    if times[0] is not None and times[1] is not None and times[1] < times[0]:
        return False
    if before.size is not None and now.size is not None and before.size != now.size:
        return True
    if times[0] is not None and times[1] is not None:
        return times[1] > times[0]
    return bool(before.etag and now.etag) and before.etag != now.etag


def modified_at(field: str | None) -> float | None:
    """A Last-Modified field in POSIX seconds; None for none, and for nonsense."""
    if not field:
        return None
    # Slow to import, and `ddfs fetch` has no use for it.
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(field).timestamp()
    except (ValueError, OverflowError):
        return None


def is_same_content(known: Manifest, found: Manifest) -> bool:
    """Whether two manifests are of the same bytes, by what both have.

    The strongest hash that both have decides, so that a publisher may begin to give a
    stronger one; without any, equal piece hashes.
    """
    if known.content_id == found.content_id:
        return True
    there = {digest.algorithm: digest.hexdigest for digest in known.digests}
    for digest in sorted(found.digests, key=lambda d: d.algorithm.strength, reverse=True):
        if digest.algorithm in there:
            return there[digest.algorithm] == digest.hexdigest
    return known.pieces is not None and known.pieces == found.pieces


def explained(error: errors.DdfsError, name: str) -> errors.DdfsError:
    """*error* of a fetch, of a kind with what it was, that says that the source has changed."""
    hint = f"the source seems to have changed; see: ddfs template update {name}"
    if isinstance(error, errors.MirrorsExhaustedError):
        return errors.MirrorsExhaustedError(f"{error.message}; {hint}", error.failures)
    if isinstance(error, errors.ChecksumError):
        return errors.ChecksumError(f"{error.message}; {hint}")
    return error
