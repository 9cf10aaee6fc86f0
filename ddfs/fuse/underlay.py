"""The directory under the mountpoint: what programs see while no daemon runs.

It holds one real symlink per published template. The mount hides it, so it is opened before
mounting and used through the descriptor alone (path_resolution(7): a descriptor does not
cross a mount made later).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from ddfs import errors

log = logging.getLogger(__name__)

DIRECTORY: Final = "templates"

# Names that we make before the rename; no template begins with a dot.
_TEMPORARY: Final = ".ddfs-"

# A guard of a daemon that died keeps the lock for as long as `umount -l` takes.
LOCK_SECONDS: Final = 5.0
_LOCK_RETRY_SECONDS: Final = 0.02


class Underlay:
    """Symlinks in ``MOUNTPOINT/templates`` on the real file system.

    Only ever touches symlinks: a regular file or directory that somebody put there stays,
    with a warning. All methods block for single file operations, and raise
    :class:`errors.StorageError` when one fails; what was there before is then still there.
    """

    def __init__(self, directory_fd: int, lock_fd: int, path: Path) -> None:
        self._fd = directory_fd
        self.lock_fd = lock_fd
        self._path = path

    @classmethod
    def open(cls, mountpoint: Path) -> Self:
        """Open the directory under *mountpoint*, on which nothing may be mounted.

        Makes ``templates`` in it, and takes the lock that keeps the guard of an older mount
        and us from meeting. Raises :class:`errors.MountError`.
        """
        path = mountpoint / DIRECTORY
        try:
            lock_fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, lock_fd)
                _lock(lock_fd, mountpoint)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(DIRECTORY, 0o755, dir_fd=lock_fd)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                directory_fd = os.open(DIRECTORY, flags, dir_fd=lock_fd)
                stack.pop_all()
        except OSError as error:
            raise errors.MountError(
                f"{path}: the directory under the mount cannot be used: {error.strerror}"
            ) from error
        return cls(directory_fd, lock_fd, path)

    def close(self) -> None:
        """Give up the descriptors and the lock."""
        for fd in (self._fd, self.lock_fd):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fd = self.lock_fd = -1

    def link(self, file_name: str, target: str) -> None:
        """Let *file_name* point to *target*, at once and whatever symlink was there."""
        if self._target(file_name) == target or not self._is_ours_to_change(file_name):
            return
        temporary = f"{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            os.symlink(target, temporary, dir_fd=self._fd)
            try:
                os.rename(temporary, file_name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            except OSError:
                os.unlink(temporary, dir_fd=self._fd)
                raise
        except OSError as error:
            raise self._failed(file_name, error) from error

    def unlink(self, file_name: str) -> None:
        """Take the symlink *file_name* away, if there is one."""
        if not self._is_ours_to_change(file_name):
            return
        try:
            os.unlink(file_name, dir_fd=self._fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failed(file_name, error) from error

    def reconcile(self, targets: Mapping[str, str]) -> None:
        """Make the symlinks exactly those of *targets*, file name to path."""
        try:
            present = os.listdir(self._fd)
        except OSError as error:
            raise self._failed(".", error) from error
        for name in present:
            if name not in targets:
                self.unlink(name)
        for name, target in targets.items():
            self.link(name, target)

    def _target(self, file_name: str) -> str | None:
        try:
            return os.readlink(file_name, dir_fd=self._fd)
        except OSError:
            return None

    def _is_ours_to_change(self, file_name: str) -> bool:
        try:
            mode = os.stat(file_name, dir_fd=self._fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return True
        except OSError as error:
            raise self._failed(file_name, error) from error
        if stat.S_ISLNK(mode):
            return True
        log.warning("%s/%s under the mount is no symlink, so it stays", self._path, file_name)
        return False

    def _failed(self, file_name: str, error: OSError) -> errors.StorageError:
        return errors.StorageError(
            f"{self._path / file_name} (under the mount): {error.strerror}; "
            "published templates may be missing while no daemon runs"
        )


def _lock(fd: int, mountpoint: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
        if time.monotonic() > deadline:
            raise errors.MountError(
                f"{mountpoint}: another ddfs, or the guard of one, keeps it locked: "
                f"`fuser -v {mountpoint}` names it"
            )
        time.sleep(_LOCK_RETRY_SECONDS)
