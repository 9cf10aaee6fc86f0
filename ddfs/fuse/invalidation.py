"""Telling the kernel what to forget.

Attributes and names only; forgetting pages would wait for pages that a blocked reader has
locked, and all other notices with it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from typing import Final

import pyfuse3

from ddfs.fuse.notices import Notices

# An open that had walked the path before the kernel was told arrives a moment later; this is
# a very long moment.
STALE_SECONDS: Final = 1.0


class Invalidations:
    """What is written through *notices*, and until when a name may be an old one.

    All methods belong to the event loop, and none blocks.
    """

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._lock = threading.Lock()
        # Inodes whose names the kernel may still have: by the number of notices under way,
        # and for a while after the last of them.
        self._under_way: Counter[int] = Counter()
        self._stale_until: dict[int, float] = {}

    def is_stale(self, inode: int) -> bool:
        """Whether somebody may come with *inode* because of a name that he should not have."""
        with self._lock:
            return (
                self._under_way[inode] > 0
                or self._stale_until.get(inode, -math.inf) > time.monotonic()
            )

    async def told(self, *inodes: int) -> None:
        """Return when the kernel has forgotten all names of *inodes* that it has to forget."""
        with self._lock:
            is_told = not any(self._under_way[inode] for inode in inodes)
        if not is_told:
            await self._notices.written()

    def forget_attributes(self, inode: int) -> None:
        """Have the attributes of *inode* asked for again."""
        self._notices.put(lambda: pyfuse3.invalidate_inode(inode, attr_only=True))

    def forget_name(self, parent: int, name: bytes, *inodes: int) -> None:
        """Have *name* looked up again; :meth:`is_stale` is true of *inodes* until then."""
        with self._lock:
            self._under_way.update(inodes)

        def forget() -> None:
            try:
                pyfuse3.invalidate_entry(parent, name)
            finally:
                self._told(inodes)

        self._notices.put(forget)

    def _told(self, inodes: tuple[int, ...]) -> None:
        now = time.monotonic()
        with self._lock:
            self._under_way.subtract(inodes)
            self._under_way += Counter()  # drops what has come to 0
            self._stale_until = {i: t for i, t in self._stale_until.items() if t > now}
            self._stale_until.update(dict.fromkeys(inodes, now + STALE_SECONDS))
