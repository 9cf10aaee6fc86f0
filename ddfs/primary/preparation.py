"""Before a directory is primary storage: is it one, where may partial files lie, whose is it?

Plain ``OSError`` where nothing better is said; the caller translates.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import threading
from pathlib import Path
from typing import Final

from ddfs import errors
from ddfs.primary import kernel

log = logging.getLogger(__name__)

_PROBE_PREFIX: Final = ".ddfs-probe-"


def check(path: Path, name: str) -> None:
    """Raise :class:`errors.StorageError` unless *path* is a directory; *name* is its setting's."""
    setting = f"set another path in [primary.{name}]"
    if not path.is_absolute():
        raise errors.StorageError(f"{path}: not an absolute path; {setting}")
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise errors.StorageError(f"{path} does not exist; make it, or {setting}") from None
    except OSError as error:
        raise errors.StorageError(f"{path}: {error.strerror}; {setting}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise errors.StorageError(f"{path} is no directory; {setting}")


def find_partial_dir(path: Path) -> tuple[Path, int]:
    """Where partial files of *path* may lie, and the device number of its files.

    Beside it if a rename from there works, else in it; the directory is there and ours.
    """
    beside = path.parent / f".ddfs-{path.name}"
    if path.name:
        try:
            return beside, _try(beside, path)
        except OSError as error:
            log.debug("no partial files in %s: %s", beside, error.strerror)
    inside = path / ".ddfs"
    return inside, _try(inside, path)


def _try(directory: Path, pool: Path) -> int:
    """Make *directory* and move a file from it into the pool; leave nothing new on failure."""
    try:
        os.mkdir(directory, 0o700)
        is_new = True
    except FileExistsError:
        is_new = False
    try:
        kernel.own(directory)
        return _move_probe(directory, pool)
    except OSError:
        if is_new:
            os.rmdir(directory)
        raise


def _move_probe(directory: Path, pool: Path) -> int:
    name = f"{_PROBE_PREFIX}{os.getpid()}-{threading.get_ident()}"
    source, target = directory / name, pool / name
    os.close(os.open(source, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        kernel.move_no_replace(source, target)
        # Of a file, not of the directory: overlayfs has different numbers for the two.
        return os.lstat(target).st_dev
    finally:
        for path in (source, target):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def sweep_probes(pool: Path) -> None:
    """Remove the empty files that a crash in the middle of a try leaves."""
    for entry in os.scandir(pool):
        if entry.name.startswith(_PROBE_PREFIX) and entry.stat(follow_symlinks=False).st_size == 0:
            os.unlink(entry.path)


def lock(path: Path, pool: Path) -> int:
    """A descriptor that holds the lock file at *path*, of the storage *pool*.

    Raises :class:`errors.AlreadyRunningError` when another process has it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Only for people: a full disk must not keep the daemon from starting.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        owner = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise errors.AlreadyRunningError(
            f"{pool}: another ddfs (process {owner}) uses this primary storage; stop it first"
        ) from None
    except OSError:
        os.close(fd)
        raise
    return fd
