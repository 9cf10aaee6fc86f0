"""Temporary directories that the next run removes where this one was killed."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PREFIX: Final = "ddfs-lab-"
LOCK: Final = ".lock"

# linux/fs.h
FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IMMUTABLE_FL: Final = 0x10

# Not /tmp, which is memory on Debian 13: there are images in here.
DEFAULT_PARENT: Final = "/var/tmp"


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A new directory that QEMU's user may enter; removed with all that is in it at the end.

    Its lock is held meanwhile, so that a later run sees which ones nobody owns any more, and
    removes those first.
    """
    parent = Path(os.environ.get("TMPDIR") or DEFAULT_PARENT)
    _sweep(parent)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    path.chmod(0o755)
    with (path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            remove_tree(path)


def remove_tree(path: Path) -> None:
    """Removes *path*, also what is immutable in it (as published templates are)."""
    for directory, _, names in os.walk(path):
        for name in names:
            clear_immutable(Path(directory, name))
    for entry in path.iterdir():
        if entry.name != LOCK:
            _remove(entry)
    # Last, and only from an empty directory: what could not be removed now is for the next run.
    if [entry.name for entry in path.iterdir()] in ([], [LOCK]):
        shutil.rmtree(path, ignore_errors=True)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            entry.unlink()


def clear_immutable(path: Path) -> None:
    """Takes the immutable flag off a regular file; does nothing where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        flags = array.array("L", [0])
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags, True)
        if flags[0] & FS_IMMUTABLE_FL:
            flags[0] &= ~FS_IMMUTABLE_FL
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags)
    except OSError:
        pass  # this file system has no such flags
    finally:
        os.close(fd)


def _sweep(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        try:
            with (path / LOCK).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(path)
        except OSError:
            continue  # in use, or not ours
