"""A view over generated templates, and their bytes.

A template's byte at offset o is a function of its row and o, so that every read anywhere can
be checked without a copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from ddfs import errors
from ddfs.fuse.view import Entry, StorageFigures

HEAD = 64 * 1024
MTIME_NS = 1_700_000_000_123_456_789
BLOCK = 1 << 20


# How long a template's bytes go on before they come again; not a multiple of a page.
PERIOD = 4 * 4099
# What two templates are apart in it; without a common divisor with the period.
SHIFT = 977


def _noise() -> bytes:
    state, words = 2654435761, []
    for _ in range(PERIOD // 4):
        state = (state * 1664525 + 1013904223) % 2**32
        words.append(state.to_bytes(4, "little"))
    return b"".join(words)


_NOISE = _noise() * (2 * BLOCK // PERIOD + 2)


def content(row: int, offset: int, length: int) -> bytes:
    """Bytes of an endless template of *row*, one MiB at most."""
    assert length <= BLOCK
    first = (offset + row * SHIFT) % PERIOD
    return _NOISE[first : first + length]


class FakeView:
    """Templates in memory. Whatever is in ``stalled`` has readers that wait."""

    def __init__(self) -> None:
        self.rows: dict[int, Entry] = {}
        self.names: dict[str, Entry] = {}
        self.stalled: set[int] = set()
        self.broken: set[int] = set()
        self.fetching: set[int] = set()
        self.failing: dict[int, Exception] = {}
        self.here: dict[int, int] = {}
        self.demands: dict[int, int] = {}
        self.reads: dict[int, int] = {}
        self.headless: set[int] = set()
        self.doubtful: set[int] = set()
        self.followed: list[int] = []
        self.changed = trio.Event()
        self.on_lookup: Callable[[str], None] | None = None

    def put(self, entry: Entry) -> None:
        self.rows[entry.row] = self.names[entry.name] = entry

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def bytes_of(self, row: int, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.rows[row].size - offset))
        return content(row, offset, length)

    def entries(self) -> Sequence[Entry]:
        return list(self.rows.values())

    def by_name(self, name: str) -> Entry | None:
        if self.on_lookup is not None:
            self.on_lookup(name)
        return self.names.get(name)

    def by_row(self, row: int) -> Entry | None:
        return self.rows.get(row)

    def bytes_here(self, row: int) -> int:
        return self.here.get(row, 0)

    def is_fetching(self, row: int) -> bool:
        return row in self.fetching

    def attributes(self, row: int) -> Mapping[str, str]:
        if row in self.broken:
            raise KeyError("a bug, as far as the mount can tell")
        return {
            "state": "downloading" if row in self.fetching else "not-downloaded",
            "row": f"{row}",
        }

    def figures(self) -> StorageFigures:
        return StorageFigures(1 << 40, 3 << 30)

    def read_head(self, row: int, offset: int, length: int) -> bytes | None:
        if row in self.headless:
            raise errors.StorageError("the head is gone")
        end = min(offset + length, self.rows[row].size)
        return self.bytes_of(row, offset, length) if end <= HEAD else None

    def head_to_keep(self, row: int) -> Callable[[int], bytes] | None:
        if row in self.doubtful:
            return None
        return lambda length: self.bytes_of(row, 0, min(length, HEAD))

    def note_followed(self, row: int) -> None:
        self.followed.append(row)

    def demand(self, row: int) -> None:
        self.demands[row] = self.demands.get(row, 0) + 1

    async def read(self, row: int, offset: int, length: int) -> bytes:
        self.reads[row] = self.reads.get(row, 0) + 1
        while row in self.stalled:
            await self.changed.wait()
        if row in self.failing:
            raise self.failing[row]
        if row in self.broken:
            raise ValueError("a bug, as far as the mount can tell")
        return self.bytes_of(row, offset, length)
