"""Publishing, in threads that a storage that hangs cannot take from the others.

Where a template becomes a volume it is copied and read back, by libvirtd, which may hang.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ddfs.model import PublishedFile
from ddfs.spool.ports import Storage

# Two copies at once saturate a disk.
_AT_ONCE: Final = 2

_limiters: defaultdict[str, trio.CapacityLimiter] = defaultdict(
    partial(trio.CapacityLimiter, _AT_ONCE)
)


async def publish(storage: Storage, path: Path, name: str) -> PublishedFile:
    """:meth:`Storage.publish`, with what that raises; a few at once on each storage."""
    return await trio.to_thread.run_sync(
        storage.publish, path, name, limiter=_limiters[storage.name]
    )
