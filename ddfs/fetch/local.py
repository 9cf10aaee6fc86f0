"""Files of this host as a mirror: read as any other, and copied by reflink where that goes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from ddfs.fetch.mirrors import FailureKind

# What copy_file_range() says where it cannot: other file systems, old kernels, odd files.
_CANNOT_COPY: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
)


class ElsewhereError(Exception):
    """A file that is not read over HTTP cannot be; the text says why, for a person."""

    def __init__(self, message: str, kind: FailureKind = FailureKind.FINAL) -> None:
        super().__init__(message)
        self.kind = kind


class LocalFile:
    """An open file of this host. For one thread."""

    is_paced = False
    server = ""

    def __init__(self, url: str, forbidden: Sequence[Path]) -> None:
        """Raises :class:`ElsewhereError` for what is no regular file, cannot be read, or
        lies in one of the *forbidden* directories.
        """
        path = path_of(url)
        try:
            # O_NONBLOCK: a fifo would wait for its writer.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise ElsewhereError(f"cannot be opened: {_reason(error)}") from None
        try:
            self._seen = os.fstat(self._fd)
            if not stat.S_ISREG(self._seen.st_mode):
                raise ElsewhereError("is not a regular file")
            real = Path(os.readlink(f"/proc/self/fd/{self._fd}"))
            for directory in forbidden:
                if directory == real or directory in real.parents:
                    raise ElsewhereError(
                        f"lies in {directory}, which is ddfs's own; give a file outside of it"
                    )
        except BaseException:
            os.close(self._fd)
            raise
        self.size = self._seen.st_size
        self.tag = f"{self._seen.st_mtime_ns:x}-{self.size:x}"
        self._can_copy = True

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def read_into(self, position: int, view: memoryview, stop: Callable[[], bool]) -> int:
        """Some bytes at *position*; 0 only behind the end."""
        del stop
        try:
            return os.preadv(self._fd, [view], position)
        except OSError as error:
            raise ElsewhereError(f"cannot be read: {_reason(error)}") from None

    def copy_into(self, fd: int, position: int, count: int) -> int | None:
        """Let the kernel copy at most *count* bytes to the same place of *fd*; how many.

        As a reflink where both lie on a file system that has them. None where the kernel
        cannot; other failures are those of *fd*, and raised.
        """
        if not self._can_copy:
            return None
        try:
            return os.copy_file_range(self._fd, fd, count, position, position)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
        self._can_copy = False
        return None

    def refuse_changed(self) -> None:
        """Raises :class:`ElsewhereError` when it was written to since it was opened."""
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self._seen.st_size, self._seen.st_mtime_ns):
            raise ElsewhereError("was changed while it was being copied")


def path_of(url: str) -> str:
    """The path of a ``file:`` address (RFC 8089)."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ElsewhereError("a file: address names a file of this host, as in file:///path")
    path = unquote(parts.path)
    if not path.startswith("/") or "\0" in path:
        raise ElsewhereError("a file: address has an absolute path, as in file:///path")
    return os.path.normpath(path)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
