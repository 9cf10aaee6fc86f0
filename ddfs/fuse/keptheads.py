"""Verified heads in the kernel's page cache, where libvirt reads them without asking us.

libvirt reads the first 33,280 bytes of every file whenever it refreshes its pool, in four
requests, and answers nobody meanwhile: with 10,000 templates not here that was 4 s. An
ordinary read through the page cache would not do, because the kernel then reads ahead, far
beyond the head, and nothing that only lists may start a fetch. So the pages are stored
unasked (FUSE_NOTIFY_STORE), by a thread, before libvirt comes to them.

Only verified heads: the pages are there for every reader, and for ever.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import pyfuse3

from ddfs import errors
from ddfs.fuse import inodes
from ddfs.fuse.notices import Notices

# What libvirt reads of a file (VIR_STORAGE_MAX_HEADER, 0x8200), in whole pages.
KEPT_BYTES: Final = 9 * 4096

# A head has as much, or all of the file. Pages that the kernel has dropped it reads again in
# naturally aligned folios, which then lie inside the head.
HEAD_BYTES: Final = 64 * 1024


# How long the first of a listing may be unknown to the kernel after that has the answer.
UNKNOWN_TRIES: Final = 5
UNKNOWN_SECONDS: Final = 0.001


class Head(NamedTuple):
    """The head of a file of *size* bytes; ``read(length)`` gives its first bytes, any thread."""

    row: int
    size: int
    read: Callable[[int], bytes]


# The kernel drops pages without a word. For so long it is believed to have what it was given.
# Giving it all again takes the CPU time that the refresh itself needs; a belief that is wrong costs
# the rest of one answer to readdir, some hundred files: the first page that is missing ends it for
# all.
BELIEVED_SECONDS: Final = 3600.0


class KeptHeads:
    """Which heads the kernel was given a while ago.

    Called in the event loop; nothing blocks. The thread that writes does single operations on
    the two containers, each of which is atomic, so they need no lock.
    """

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._believed_until: dict[int, float] = {}
        self._under_way: set[int] = set()

    def has(self, row: int) -> bool:
        """Whether the kernel most probably has the head of *row*."""
        return self._believed_until.get(row, -math.inf) > time.monotonic()

    def is_needless(self, row: int) -> bool:
        """Whether there is nothing to store of *row*: the kernel has it, or is to have it."""
        return row in self._under_way or self.has(row)

    def store(self, heads: Sequence[Head]) -> None:
        """Give the kernel *heads*, soon, in their order.

        They are of files whose inodes the kernel is about to know, and which have no reader
        who waits: his pages are locked, and the thread would wait with him.
        """
        self._under_way.update(head.row for head in heads)

        def write() -> None:
            try:
                self._write(heads)
            finally:
                self._under_way.difference_update(head.row for head in heads)

        self._notices.put(write)

    def _write(self, heads: Sequence[Head]) -> None:
        patience = UNKNOWN_TRIES
        for head in heads:
            is_stored = _store(head)
            # A listing has been answered, and whoever asked for it has not looked at it yet.
            while is_stored is None and patience:
                patience -= 1
                time.sleep(UNKNOWN_SECONDS)
                is_stored = _store(head)
            if is_stored:
                patience = 0
                self._believed_until[head.row] = time.monotonic() + BELIEVED_SECONDS

    def forget(self, row: int) -> None:
        """The file of *row* is no more, or a symlink now."""
        self._believed_until.pop(row, None)

    def forget_all(self) -> None:
        """The kernel has dropped one: it needs the memory, so believe nothing of the others."""
        self._believed_until.clear()


def _store(head: Head) -> bool | None:
    """None when the kernel does not know the inode."""
    try:
        data = head.read(HEAD_BYTES)
    except errors.DdfsError:
        return False  # whoever opens the file meets the same error and says so
    if head.size == 0 or len(data) < min(HEAD_BYTES, head.size):
        return False
    try:
        # Not a byte more than the file has: the kernel would take that for its new size.
        pyfuse3.notify_store(inodes.file_inode(head.row), 0, data[: min(KEPT_BYTES, head.size)])
    except FileNotFoundError:
        return None
    return True
