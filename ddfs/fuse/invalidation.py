"""Telling the kernel what to forget.

The kernel answers such a notice only when no related request is pending (a lookup in the same
directory, for one), and the loop that would have to answer that request must not be the one
that waits: the notices are written by a thread of their own. Attributes and names only;
forgetting pages would wait for pages that a blocked reader has locked.
"""

from __future__ import annotations

import errno
import logging
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import pyfuse3

log = logging.getLogger(__name__)

# The kernel knows nothing of it, or the mount is gone: nothing to forget in both cases.
_HARMLESS: Final = frozenset({errno.ENOENT, errno.ENOTCONN, errno.ENODEV, errno.EBADF})

# An open that had walked the path before the kernel was told arrives a moment later; this is
# a very long moment.
STALE_SECONDS: Final = 1.0


class Invalidations:
    """A queue of notices and the thread that writes them.

    All methods belong to the event loop, and none blocks but :meth:`join`. Notices are
    written in the order in which they were queued.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # Inodes whose names the kernel may still have: by the number of notices under way,
        # and for a while after the last of them.
        self._under_way: Counter[int] = Counter()
        self._stale_until: dict[int, float] = {}
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start writing. Notices that were queued before are written now."""
        self._thread = threading.Thread(target=self._run, name="fuse-notices", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write nothing that has not been begun."""
        self._stopping = True
        self._queue.put(None)

    def join(self, timeout_seconds: float) -> bool:
        """Whether the thread has ended. To be called from another thread than the loop's."""
        if self._thread is None:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def is_stale(self, inode: int) -> bool:
        """Whether somebody may come with *inode* because of a name that he should not have."""
        with self._lock:
            return (
                self._under_way[inode] > 0
                or self._stale_until.get(inode, -math.inf) > time.monotonic()
            )

    def forget_attributes(self, inode: int) -> None:
        """Have the attributes of *inode* asked for again."""
        self._queue.put(lambda: pyfuse3.invalidate_inode(inode, attr_only=True))

    def forget_name(self, parent: int, name: bytes, *inodes: int) -> None:
        """Have *name* looked up again; :meth:`is_stale` is true of *inodes* until then."""
        with self._lock:
            self._under_way.update(inodes)

        def forget() -> None:
            try:
                pyfuse3.invalidate_entry(parent, name)
            finally:
                self._told(inodes)

        self._queue.put(forget)

    def _told(self, inodes: tuple[int, ...]) -> None:
        now = time.monotonic()
        with self._lock:
            self._under_way.subtract(inodes)
            self._under_way += Counter()  # drops what has come to 0
            self._stale_until = {i: t for i, t in self._stale_until.items() if t > now}
            self._stale_until.update(dict.fromkeys(inodes, now + STALE_SECONDS))

    def _run(self) -> None:
        while (notice := self._queue.get()) is not None:
            # A notice after the session's end would write to freed memory.
            if self._stopping:
                return
            try:
                notice()
            except OSError as error:
                if error.errno not in _HARMLESS:
                    log.warning("the kernel could not be told of a change: %s", error)
