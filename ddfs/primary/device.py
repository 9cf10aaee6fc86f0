"""Block devices that hold a template: which one it is, what is on it, who has it open.

Everything raises plain ``OSError``; the caller translates.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ddfs.model import KiB, MiB

# <linux/fs.h>: _IO(0x12, N). The argument of BLKROSET is an int.
_BLKROSET: Final = 0x125D
_BLKROGET: Final = 0x125E
_BLKFLSBUF: Final = 0x1261
_NO_DEVICE: Final = {errno.ENOTTY, errno.EINVAL, errno.EPERM, errno.EACCES}

# The start and the end of an image have its tables; some places between them find most of
# what writes over the rest. A look takes milliseconds, since each start of a domain asks.
_SAMPLE_ENDS: Final = 64 * KiB
_SAMPLE_LENGTH: Final = 4 * KiB
_SAMPLES: Final = 16

_BLOCK: Final = MiB


@contextlib.contextmanager
def opened(path: str | Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of the device at *path*, which may be a link to it (LVM's are)."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not is_volume(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK), str(path))
        yield fd
    finally:
        os.close(fd)


def is_volume(mode: int) -> bool:
    """Whether it is a block device, or the file that a pool of files has in its place."""
    return stat.S_ISBLK(mode) or stat.S_ISREG(mode)


def number_of(fd: int) -> int:
    """What tells the device from others, until the next reboot."""
    status = os.fstat(fd)
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev


def size_of(fd: int) -> int:
    """In bytes."""
    return os.lseek(fd, 0, os.SEEK_END)


def fingerprint(fd: int, size: int) -> int:
    """A number of 63 bits, of samples of the first *size* bytes."""
    hasher = hashlib.sha256(size.to_bytes(8, "big"))
    hasher.update(os.pread(fd, min(size, _SAMPLE_ENDS), 0))
    for sample in range(1, _SAMPLES + 1):
        hasher.update(os.pread(fd, _SAMPLE_LENGTH, size * sample // (_SAMPLES + 1)))
    tail = max(0, size - _SAMPLE_ENDS)
    hasher.update(os.pread(fd, size - tail, tail))
    return int.from_bytes(hasher.digest()[:8], "big") >> 1


def set_read_only(fd: int, wanted: bool) -> bool:
    """Set or clear what blockdev --setro sets; False where that cannot be done.

    Set, the kernel refuses to write, to root and to QEMU too. It does not outlive a reboot.
    """
    try:
        if is_read_only(fd) != wanted:
            fcntl.ioctl(fd, _BLKROSET, struct.pack("i", wanted))
    except OSError as error:
        if error.errno not in _NO_DEVICE:
            raise
        return False
    return True


def is_read_only(fd: int) -> bool:
    """Whether the kernel refuses to write."""
    answer: bytes = fcntl.ioctl(fd, _BLKROGET, struct.pack("i", 0))
    return bool(struct.unpack("i", answer)[0])


def settle(fd: int) -> None:
    """All of it on the disk, and nothing of it in memory: the next read is the disk's word."""
    os.fsync(fd)
    try:
        fcntl.ioctl(fd, _BLKFLSBUF, 0)
    except OSError as error:
        if error.errno not in _NO_DEVICE:
            raise
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def first_difference(
    fd: int, other: int, size: int, length: int, check: Callable[[], object]
) -> int | None:
    """Where a device first differs from *size* bytes of *other* with zeros up to *length*."""
    for start in range(0, length, _BLOCK):
        check()
        count = min(_BLOCK, length - start)
        wanted = os.pread(other, min(count, max(0, size - start)), start).ljust(count, b"\0")
        found = os.pread(fd, count, start)
        if found != wanted:
            pairs = enumerate(zip(found, wanted, strict=False))
            return start + next((at for at, (one, two) in pairs if one != two), len(found))
    return None


def users(number: int) -> list[str]:
    """The processes that have the device of that number open."""
    found = []
    for process in os.scandir("/proc"):
        if not process.name.isdigit():
            continue
        try:
            descriptors = list(os.scandir(f"{process.path}/fd"))
        except OSError:
            continue
        if any(_is_open_device(descriptor.path, number) for descriptor in descriptors):
            found.append(f"process {process.name}")
    return found


def _is_open_device(descriptor: str, number: int) -> bool:
    try:
        # Anything else is not asked: what it is on may hang.
        if not os.readlink(descriptor).startswith("/dev/"):
            return False
        status = os.stat(descriptor)
    except OSError:  # closed meanwhile, which says nothing of the others
        return False
    return stat.S_ISBLK(status.st_mode) and status.st_rdev == number
