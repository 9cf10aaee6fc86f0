"""Bytes from one open file into another: shared, or copied as sparse as they are. Blocks.

All raise ``OSError``; *check* is called often, and may raise to end a copy. What is copied into
is an empty file.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Final

# linux/fs.h: _IOW(0x94, 9, int); ioctl_ficlonerange(2).
_FICLONE: Final = 0x40049409

# What a file system without reflinks answers, and copy_file_range(2) where it cannot.
_CANNOT: Final = {
    errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM,
    errno.EBADF, errno.ETXTBSY,
}  # fmt: skip

_MIB: Final = 1024 * 1024

# A copy that is to end does so within one of these.
_STEP: Final = 8 * _MIB


def reflink(source: int, target: int) -> bool:
    """Make *target* share the blocks of *source*; False where that cannot be."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def copy_data(source: int, target: int, check: Callable[[], object]) -> None:
    """What is data in *source*; holes stay holes."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, end in _data(source, size):
        offset = start
        while offset < end:
            check()
            offset += _copy_some(source, target, offset, min(_STEP, end - offset))


def copy_volume(source: int, target: int, size: int, check: Callable[[], object]) -> None:
    """The first *size* bytes of a device, which does not say where it has nothing: zeros are
    left out.
    """
    os.ftruncate(target, size)
    for offset in range(0, size, _MIB):
        check()
        data = os.pread(source, min(_MIB, size - offset), offset)
        if not data:
            raise OSError(errno.EIO, "the volume is shorter than what was published")
        if data.strip(b"\0"):
            os.pwrite(target, data, offset)


def _copy_some(source: int, target: int, offset: int, length: int) -> int:
    """Some bytes at *offset*, at least one; the kernel copies them where it can."""
    try:
        done = os.copy_file_range(source, target, length, offset, offset)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        done = os.pwrite(target, os.pread(source, min(length, _MIB), offset), offset)
    if done == 0:
        raise OSError(errno.EIO, "the file became shorter while it was copied")
    return done


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges that are no holes (lseek(2), SEEK_DATA); all of it where nobody knows."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            start, end = offset, size
        yield start, end
        offset = end
