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
        # By path and inode: the file that gets a name anew is another one.
        self._open: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._readers: dict[tuple[str, int], int] = {}
        # Files that are going away while somebody reads them: an open one keeps its room.
        self._going: set[tuple[str, int]] = set()

    async def read(self, published: PublishedFile, offset: int, length: int) -> bytes:
        """Bytes of *published*; raises :class:`errors.StorageError` if it is not the same file."""
        path, key = published.path, (published.path, published.inode)
        fd = self._descriptor(published)
        self._readers[key] = self._readers.get(key, 0) + 1
        try:
            return await read_file(fd, offset, length)
        except OSError as error:
            raise errors.StorageError(f"{path}: {error.strerror or error}") from error
        finally:
            self._readers[key] -= 1
            if not self._readers[key]:
                del self._readers[key]
                self._close_going()

    def _descriptor(self, published: PublishedFile) -> int:
        key = published.path, published.inode
        if key not in self._open:
            self._open[key] = _open_same(published)
        self._open.move_to_end(key)
        self._close_unused()
        return self._open[key]

    def _close_unused(self) -> None:
        if len(self._open) <= MAX_OPEN_FILES:
            return
        for key in [k for k in self._open if k not in self._readers]:
            if len(self._open) <= MAX_OPEN_FILES:
                break
            os.close(self._open.pop(key))

    def forget(self, path: str) -> None:
        """Close the descriptors of a file that is going away, once nobody reads it."""
        self._going |= {key for key in self._open if key[0] == path}
        self._close_going()

    def _close_going(self) -> None:
        for key in [k for k in self._going if k not in self._readers]:
            self._going.discard(key)
            fd = self._open.pop(key, None)
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        """Close all."""
        self._going.clear()
        while self._open:
            os.close(self._open.popitem()[1])


def _open_same(published: PublishedFile) -> int:
    try:
        # LVM's names of devices are links; no name of a file of ours is.
        follow = 0 if published.is_volume else os.O_NOFOLLOW
        fd = os.open(published.path, os.O_RDONLY | os.O_CLOEXEC | follow)
    except OSError as error:
        raise errors.StorageError(f"{published.path}: {error.strerror or error}") from error
    if published.is_volume:
        return fd
    status = os.fstat(fd)
    if (status.st_ino, status.st_size) != (published.inode, published.size):
        os.close(fd)
        raise errors.StorageError(f"{published.path}: not the file that was published")
    return fd
