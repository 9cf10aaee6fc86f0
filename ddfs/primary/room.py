"""Who has been promised how much room on one file system. Pure: figures in, decision out.

Two fetches of 60 GB must not both start because each sees the same 100 GB free. A promise
counts in full at first, and less as its partial file grows, because the file system then
counts those bytes itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ddfs.model import MiB

# What is never promised: the file system's own metadata grows with a file, and a pool that
# is full to the last block pauses every VM whose overlay lies there. A share on small file
# systems, so that those can be used at all.
SPARE_MAX: Final = 64 * MiB
SPARE_SHARE: Final = 100


def spare_bytes(total: int) -> int:
    """What stays free on a file system of *total* bytes."""
    return min(SPARE_MAX, total // SPARE_SHARE)


@dataclass(frozen=True, slots=True)
class Room:
    """How full a storage is, in bytes: its file system's size and what is free there; what
    files of ddfs take or are promised; the limits, None and 0 where there are none.
    """

    total: int
    free: int
    held: int
    quota: int | None
    keep_free: int


@dataclass
class _Promise:
    bytes: int
    written: int = 0


@dataclass
class Ledger:
    """The promises. Not thread-safe; its owner has a lock."""

    _promises: dict[str, _Promise] = field(default_factory=dict)

    def __contains__(self, content_id: str) -> bool:
        return content_id in self._promises

    def contents(self) -> list[str]:
        """Who holds a promise."""
        return list(self._promises)

    def note_written(self, content_id: str, written: int) -> None:
        """*written* bytes of the promise are allocated by now; it never goes down."""
        promise = self._promises.get(content_id)
        if promise is not None:
            promise.written = max(promise.written, written)

    def promised(self) -> int:
        """Bytes promised, written or not."""
        return sum(max(p.bytes, p.written) for p in self._promises.values())

    def outstanding(self) -> int:
        """Bytes promised and not yet written."""
        return sum(max(0, p.bytes - p.written) for p in self._promises.values())

    def missing(
        self,
        content_id: str,
        wanted: int,
        written: int,
        total: int,
        free: int,
        *,
        keep_free: int = 0,
    ) -> int:
        """How many bytes the file system lacks for a promise of *wanted*, of which *written*
        are there; *keep_free* bytes of it are nobody's.

        0 means that there is room. A promise that *content_id* holds already does not count
        against it.
        """
        mine = self._promises.get(content_id)
        others = self.outstanding() - (max(0, mine.bytes - mine.written) if mine else 0)
        available = free - max(spare_bytes(total), keep_free) - others
        return max(0, max(0, wanted - written) - max(0, available))

    def over_quota(self, content_id: str, wanted: int, written: int, held: int, quota: int) -> int:
        """By how many bytes a promise of *wanted* would break *quota*.

        *held* is what ddfs has in the storage beside the files that promises are for; those
        count with what they are promised, or with what they have where that is more.
        """
        others = sum(max(p.bytes, p.written) for c, p in self._promises.items() if c != content_id)
        return max(0, max(wanted, written) - max(0, quota - held - others))

    def promise(self, content_id: str, wanted: int, written: int) -> None:
        """Write the promise down, in place of an older one."""
        self._promises[content_id] = _Promise(wanted, written)

    def release(self, content_id: str) -> None:
        """Forget the promise; none is fine."""
        self._promises.pop(content_id, None)


def megabytes(count: int) -> str:
    """*count* bytes for people, rounded up."""
    return f"{-(-count // MiB)} MiB"
