"""Disks made from templates: overlays on them, and copies of them. All of it blocks.

A disk is made under a temporary name in the directory where it shall lie, and gets its own
name when it is complete and on disk, so that nobody ever sees half of one. What a crash
leaves has no lock on it any more, and goes when the next disk is made there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ddfs import errors, filecopy
from ddfs.model import ImageFormat

TEMPORARY_PREFIX: Final = ".ddfs-clone-"

# What libvirt gives a new volume (VIR_STORAGE_DEFAULT_VOL_PERM_MODE); it hands the file to
# QEMU's user when the domain starts.
_NEW_MODE: Final = 0o600

_NO_MARKS: Final = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}

# qemu-img writes a header here, and no data; more than this is a file system that hangs.
_QEMU_IMG_SECONDS: Final = 60.0
_QEMU_IMG_LIMITS: Final = ("prlimit", "--as=2147483648", "--cpu=30", "--")

_LABEL: Final = "security.selinux"

# For what a disk was made; goes with the file, on file systems that keep such attributes.
_MARK: Final = "user.ddfs.made-for"


class NewDisk:
    """A disk in the making in *directory*: an empty file that nobody else has.

    All methods raise :class:`errors.StorageError` and :class:`errors.StorageFullError`.
    """

    def __init__(self, directory: Path) -> None:
        with _translated(directory):
            _sweep(directory)
            self.path = directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, _NEW_MODE)
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def overlay(self, backing: Path, backing_format: ImageFormat, size: int) -> None:
        """Make it a qcow2 overlay of *size* bytes; the backing file is not opened."""
        words = ("-q", "-f", "qcow2", "-F", backing_format.qemu_name, "-b", str(backing), "-u")
        _qemu_img("create", *words, str(self.path), str(size))

    def copy(
        self,
        source: Path,
        check_cancelled: Callable[[], object],
        volume_bytes: int | None = None,
    ) -> bool:
        """Make it a copy of *source*; whether its blocks are shared (a reflink).

        Of a device *volume_bytes* are copied, and not what it has behind them.
        *check_cancelled* is called now and then, and may raise.
        """
        with _translated(self.path):
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if volume_bytes is not None:
                    filecopy.copy_volume(fd, self._fd, volume_bytes, check_cancelled)
                    return False
                if filecopy.reflink(fd, self._fd):
                    return True
                _refuse_full(fd, self._fd)
                filecopy.copy_data(fd, self._fd, check_cancelled)
                return False
            finally:
                os.close(fd)

    def grow(self, image_format: ImageFormat, size: int) -> None:
        """Make the disk inside *size* bytes large."""
        _qemu_img("resize", "-q", "-f", image_format.qemu_name, str(self.path), str(size))

    def take_after(self, old: Path) -> None:
        """Owner, mode and label of *old*, a file that it shall replace."""
        with _translated(old):
            status = os.stat(old, follow_symlinks=False)
            os.fchown(self._fd, status.st_uid, status.st_gid)
            os.fchmod(self._fd, stat.S_IMODE(status.st_mode))
        with contextlib.suppress(OSError):
            os.setxattr(self._fd, _LABEL, os.getxattr(old, _LABEL))

    def write(self, data: bytes) -> None:
        """Put *data* into it."""
        with _translated(self.path), open(self._fd, "wb", closefd=False) as file:
            file.write(data)

    def mark(self, mark: str) -> None:
        """Say for what it is made, where the file system keeps that."""
        with _translated(self.path):
            try:
                os.setxattr(self._fd, _MARK, mark.encode())
            except OSError as error:
                if error.errno not in _NO_MARKS:
                    raise

    def publish(self, path: Path, *, replace: bool) -> None:
        """Give it its name, *path*, in one step; it is on disk then.

        Without *replace* a file of that name is :class:`errors.NameTakenError`, and stays.
        """
        with _translated(path):
            os.fsync(self._fd)
            if replace or not self._link(path):
                os.rename(self.path, path)
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _link(self, path: Path) -> bool:
        """Give it its name if nobody has it; False where there are no hard links: then the name
        is kept for it by an empty file.
        """
        try:
            try:
                os.link(self.path, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(path, flags, _NEW_MODE))
                return False
        except FileExistsError:
            raise errors.NameTakenError(
                f"{path} is there already; choose another name, or make it anew with --replace"
            ) from None
        os.unlink(self.path)
        return True

    def close(self) -> None:
        """Leave nothing but what was published. Never fails."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os.close(self._fd)


def is_marked_otherwise(path: Path, mark: str) -> bool:
    """Whether the file at *path* was made for something else, as far as one can see."""
    try:
        return os.getxattr(path, _MARK, follow_symlinks=False) != mark.encode()
    except OSError as error:
        # Its file system keeps marks, and it has none.
        return error.errno == errno.ENODATA


def virtual_size(path: Path, image_format: ImageFormat) -> int:
    """The size of the disk in an image that was verified and inspected, in bytes.

    Raises :class:`errors.StorageError`.
    """
    if image_format.qemu_name == "raw":
        with _translated(path):
            return os.stat(path).st_size
    said = _qemu_img("info", "--output=json", "-U", "-f", image_format.qemu_name, str(path))
    return int(json.loads(said)["virtual-size"])


def _sweep(directory: Path) -> None:
    """Remove what disks in the making left when their process was killed."""
    for name in os.listdir(directory):
        if not name.startswith(TEMPORARY_PREFIX):
            continue
        path = directory / name
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(fd)


def _refuse_full(source: int, target: int) -> None:
    """Not after hours, when the file system is full."""
    room = os.fstatvfs(target)
    if os.fstat(source).st_blocks * 512 > room.f_bavail * room.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _qemu_img(*words: str) -> bytes:
    """What it printed."""
    command = [*_QEMU_IMG_LIMITS, "qemu-img", *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_QEMU_IMG_SECONDS
        )
    except FileNotFoundError as error:
        raise errors.StorageError(f"{error.filename} is not installed") from error
    except subprocess.TimeoutExpired:
        raise errors.StorageError(
            f"qemu-img {words[0]} did not end within {_QEMU_IMG_SECONDS:.0f} s"
        ) from None
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())
        kind = errors.StorageFullError if "No space left" in said else errors.StorageError
        raise kind(f"qemu-img {words[0]}: {said or f'exit status {done.returncode}'}")
    return done.stdout


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.StorageFullError(f"{path.parent}: no room for the disk") from error
        raise errors.StorageError(f"{path}: {error.strerror or error}") from error
