"""What the template pool shows, as far as FUSE has to know it.

:class:`TemplateView` is what this package asks for; whoever owns templates implements it and
hands it in. All of it is called in one event loop, and all but :meth:`TemplateView.read` is
synchronous and answered from memory (or, for :meth:`TemplateView.read_head`, from a small
local file), because ``lookup``, ``getattr``, ``open`` and a probe's read must never wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ddfs.model import MAX_SIZE

# An inode number is made from the row (see inodes.py) and has to fit 64 bits with room for
# the bits of a file handle.
MAX_ROW = 2**56


@dataclass(frozen=True, slots=True)
class Entry:
    """One template as the mount shows it.

    ``name`` is the file name in the directory, ``size`` is in bytes, ``mtime_ns`` in
    nanoseconds since the epoch. ``published_path`` is the absolute path of the complete
    file in primary storage, None while the template is not published; with it the entry
    is a symlink, without it a regular file.
    """

    row: int
    name: str
    size: int
    mtime_ns: int
    published_path: str | None

    def __post_init__(self) -> None:
        if not 0 <= self.row <= MAX_ROW:
            raise ValueError(f"not a row: {self.row}")
        if not 0 <= self.size <= MAX_SIZE:
            raise ValueError(f"not a size: {self.size}")
        if not self.name or "/" in self.name or "\0" in self.name or self.name in (".", ".."):
            raise ValueError(f"not a file name: {self.name!r}")
        if self.published_path is not None and not self.published_path.startswith("/"):
            raise ValueError(f"not an absolute path: {self.published_path!r}")


@dataclass(frozen=True, slots=True)
class StorageFigures:
    """How large primary storage is and how much of it is free, in bytes."""

    total_bytes: int
    free_bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.free_bytes <= self.total_bytes:
            raise ValueError(f"{self.free_bytes} bytes free of {self.total_bytes}")


class TemplateView(Protocol):
    """All templates, and the bytes in them. Same event loop as the mount."""

    def entries(self) -> Sequence[Entry]:
        """All entries in ascending order of ``row``. From memory."""

    def by_name(self, name: str) -> Entry | None:
        """The entry of that file name."""

    def by_row(self, row: int) -> Entry | None:
        """The entry of that row."""

    def bytes_here(self, row: int) -> int:
        """How many bytes of the file are stored here; what ``st_blocks`` shows."""

    def is_fetching(self, row: int) -> bool:
        """Whether a fetch runs, so that attributes change from second to second."""

    def attributes(self, row: int) -> Mapping[str, str]:
        """What is shown as ``user.ddfs.*``: state, progress (``"42"``), sha256, source."""

    def figures(self) -> StorageFigures:
        """The size of primary storage, for ``statfs``. From memory, never from the disk."""

    def read_head(self, row: int, offset: int, length: int) -> bytes | None:
        """The bytes of a range inside the stored head.

        None when the range is not wholly inside it; a range that ends at or behind the end
        of a file whose whole content is the head is inside, and then comes back shorter.
        """

    def head_to_keep(self, row: int) -> Callable[[int], bytes] | None:
        """What reads so many first bytes of the stored head, if the kernel may keep them.

        None when they were not verified. The function may be called in any thread, reads a
        small local file, and gives fewer bytes where there are no more.
        """

    def note_followed(self, row: int) -> None:
        """Somebody follows the symlink of a published template. Never raises or blocks."""

    def demand(self, row: int) -> None:
        """Start a fetch if none runs and none rests. Never raises, never blocks."""

    async def read(self, row: int, offset: int, length: int) -> bytes:
        """Verified bytes, fewer than *length* only at the end of the file.

        Waits as long as it takes, and may be cancelled while it does. Raises a leaf of
        :class:`ddfs.errors.DdfsError`: the reader sees ENOSPC where that is its ``errno``,
        else EIO, since no other errno means anything to somebody who reads.
        """
