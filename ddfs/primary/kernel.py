"""The Linux calls that Python does not have: renameat2() and the immutable flag.

Everything raises plain ``OSError``; the caller translates.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

# <fcntl.h>, <linux/fs.h>. The ioctl numbers carry the size of a long, the argument is an int.
_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_FS_IMMUTABLE_FL: Final = 0x10
_LONG: Final = struct.calcsize("l")
_FS_IOC_GETFLAGS: Final = 2 << 30 | _LONG << 16 | ord("f") << 8 | 1
_FS_IOC_SETFLAGS: Final = 1 << 30 | _LONG << 16 | ord("f") << 8 | 2

# What a file system says that has no such thing (NFS and many FUSE ones for the rename),
# or that we may not use it (no CAP_LINUX_IMMUTABLE).
_NOT_HERE: Final = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY}
_NO_FLAG: Final = _NOT_HERE | {errno.EPERM, errno.EACCES}

Rename = Callable[[Path, Path], None]


def _rename_no_replace() -> Rename:
    library = ctypes.CDLL(None, use_errno=True)
    try:
        function = library.renameat2
    except AttributeError:  # a C library that has no wrapper for it

        def missing(source: Path, target: Path) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(source), None, str(target))

        return missing
    function.argtypes = [
        ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
    ]  # fmt: skip
    function.restype = ctypes.c_int

    def rename(source: Path, target: Path) -> None:
        names = os.fsencode(source), os.fsencode(target)
        if function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(source), None, str(target))

    return rename


rename_no_replace: Final[Rename] = _rename_no_replace()


def move_no_replace(source: Path, target: Path, rename: Rename = rename_no_replace) -> None:
    """Move *source* to *target* on the same file system; ``FileExistsError`` if that is there.

    Where the file system has no RENAME_NOREPLACE (renameat2(2): EINVAL) it is link() and
    unlink(), which replaces nothing either. A crash between these two leaves both names on
    one inode. A file system that has neither raises its errno: there is no third way that
    could not overwrite somebody's file.
    """
    try:
        rename(source, target)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        os.link(source, target, follow_symlinks=False)
        os.unlink(source)


def set_immutable(fd: int, wanted: bool) -> bool:
    """Set or clear the immutable flag (chattr +i); False where that cannot be done.

    Set, it stops writing, truncating, renaming and unlinking for root too.
    """
    try:
        flags = _flags(fd)
        changed = flags | _FS_IMMUTABLE_FL if wanted else flags & ~_FS_IMMUTABLE_FL
        if changed != flags:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("ii", changed, 0))
    except OSError as error:
        if error.errno not in _NO_FLAG:
            raise
        return False
    return True


def clear_immutable(path: Path) -> None:
    """Take the flag off *path*; nothing where it is no regular file, or is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        # LVM's devices are symlinks.
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return
        raise
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            set_immutable(fd, False)
    finally:
        os.close(fd)


def is_immutable(fd: int) -> bool:
    """Whether the immutable flag is set."""
    try:
        return bool(_flags(fd) & _FS_IMMUTABLE_FL)
    except OSError as error:
        if error.errno not in _NO_FLAG:
            raise
        return False


def _flags(fd: int) -> int:
    answer = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, struct.pack("ii", 0, 0))
    flags: int = struct.unpack("ii", answer)[0]
    return flags


def sync_directory(path: Path) -> None:
    """fsync() of a directory; file systems that know no such thing (EINVAL) have nothing to do."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    finally:
        os.close(fd)


def own(directory: Path) -> None:
    """Refuse a directory that somebody else could have put there, and close it to others."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"{directory} belongs to another user")
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def unlink_immutable(path: Path) -> None:
    """Delete a protected file; after a failure it is protected as before."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        set_immutable(fd, False)
        try:
            os.unlink(path)
        except OSError:
            set_immutable(fd, True)
            raise
    finally:
        os.close(fd)
