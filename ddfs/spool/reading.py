"""Reads that do not hold up the event loop.

What was written a moment ago is in the page cache, and a read of it there costs less than
the way to a thread and back (186 against some 1,000 MiB/s through FUSE). The kernel says
which it is: ``RWF_NOWAIT`` fails instead of waiting for the disk.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from typing import Final

import trio

from ddfs import errors
from ddfs.model import PublishedFile

# Cold reads at once; a disk has no use for more, and none of them waits for a network.
_cold_limiter = trio.CapacityLimiter(32)

# Published files that readers of before still read through the mount. Few: everyone else
# goes through the symlink.
MAX_OPEN_FILES: Final = 256


async def read_file(fd: int, offset: int, length: int) -> bytes:
    """Bytes of an open file, fewer than *length* only at its end.

    Raises OSError. Cancelled, it returns first: the descriptor stays in use until then.
    """
    buffer = bytearray(length)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
        count = 0
    if count < length:
        view = memoryview(buffer)
        count += await trio.to_thread.run_sync(
            _read_cold, fd, view[count:], offset + count, limiter=_cold_limiter
        )
    return bytes(memoryview(buffer)[:count])


def _read_cold(fd: int, view: memoryview, offset: int) -> int:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


class OpenFiles:
    """Descriptors of published files, the least recently used closed first.

    A descriptor in use is never closed: a reader holds it through :meth:`read`.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()
        self._readers: dict[str, int] = {}

    async def read(self, published: PublishedFile, offset: int, length: int) -> bytes:
        """Bytes of *published*; raises :class:`errors.StorageError` if it is not the same file."""
        path = published.path
        fd = self._descriptor(published)
        self._readers[path] = self._readers.get(path, 0) + 1
        try:
            return await read_file(fd, offset, length)
        except OSError as error:
            raise errors.StorageError(f"{path}: {error.strerror or error}") from error
        finally:
            self._readers[path] -= 1
            if not self._readers[path]:
                del self._readers[path]

    def _descriptor(self, published: PublishedFile) -> int:
        path = published.path
        if path not in self._open:
            self._open[path] = _open_same(published)
        self._open.move_to_end(path)
        self._close_unused()
        return self._open[path]

    def _close_unused(self) -> None:
        for path in [p for p in self._open if p not in self._readers]:
            if len(self._open) <= MAX_OPEN_FILES:
                break
            os.close(self._open.pop(path))

    def forget(self, path: str) -> None:
        """Close the descriptor of a file that is going away, unless somebody reads it."""
        if path in self._open and path not in self._readers:
            os.close(self._open.pop(path))

    def close(self) -> None:
        """Close all."""
        while self._open:
            os.close(self._open.popitem()[1])


def _open_same(published: PublishedFile) -> int:
    try:
        fd = os.open(published.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise errors.StorageError(f"{published.path}: {error.strerror or error}") from error
    status = os.fstat(fd)
    if (status.st_ino, status.st_size) != (published.inode, published.size):
        os.close(fd)
        raise errors.StorageError(f"{published.path}: not the file that was published")
    return fd
