"""Messages to the kernel, written by a thread of their own.

The kernel answers one only when no related request is pending, and the loop that would have
to answer that request must not be the one that waits.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

import trio

log = logging.getLogger(__name__)

# The kernel knows nothing of it, or the mount is gone: nothing to tell in both cases.
_HARMLESS: Final = frozenset({errno.ENOENT, errno.ENOTCONN, errno.ENODEV, errno.EBADF})


class Notices:
    """A queue of messages and the thread that writes them, in the order of :meth:`put`.

    Nothing blocks but :meth:`join`. A message is a function that may raise ``OSError``.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def put(self, notice: Callable[[], None]) -> None:
        """Have *notice* called, before or after :meth:`start`."""
        self._queue.put(notice)

    async def written(self) -> None:
        """Return when all that was put before is written; after :meth:`stop`, never."""
        event, token = trio.Event(), trio.lowlevel.current_trio_token()

        def tell() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(event.set)

        self.put(tell)
        await event.wait()

    def start(self) -> None:
        """Start writing. What was queued before is written now."""
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
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
            except Exception:
                # What is queued behind it would be stale for ever.
                log.exception("a message to the kernel could not be made")
