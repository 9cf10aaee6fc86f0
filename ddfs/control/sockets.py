"""Unix sockets that a daemon listens on: made, taken over from a dead one, removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ddfs import errors

# Whoever may use this socket lets the daemon, which is root, fetch from anywhere, delete
# published files and start domains: root and the group that the operator gives it.
OWNER_MODE: Final = 0o660

# Listing what is in the pool is no secret: the mount shows the same to everybody.
READER_MODE: Final = 0o666

# Connections that wait to be accepted. A host that starts all its domains at once has a
# hook for each.
BACKLOG: Final = 512

# A daemon that is alive accepts in the kernel, before it runs.
ANSWER_SECONDS: Final = 1.0


@contextlib.contextmanager
def listening(path: Path, mode: int, group: str | None = None) -> Iterator[socket.socket]:
    """A non-blocking socket that listens at *path* with *mode*; removed on leaving.

    It belongs to *group*, or to the daemon's own where none is given.
    The parent directory is made. What a dead daemon left is replaced; where one answers
    it is :class:`~ddfs.errors.AlreadyRunningError`, and anything that is no socket is
    :class:`~ddfs.errors.ConfigError` and stays. On leaving, the file is removed only if it
    is still the one that was made here.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _clear(path)
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            # The mode of the unbound socket becomes that of the file: at no moment may more
            # people connect than in the end.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(os.fspath(path))
            made = path.lstat()
            stack.callback(_remove, path, made)
            if group is not None:
                _give_to(path, group)
            path.chmod(mode)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            reason = error.strerror or str(error)
            raise errors.ConfigError(
                f"{path}: no socket can be made there: {reason}; set another `socket`"
            ) from error
        yield sock


def _give_to(path: Path, group: str) -> None:
    try:
        shutil.chown(path, group=group)
    except LookupError:
        raise errors.ConfigError(
            f"socket_group: there is no group {group!r}; make it with: groupadd --system {group}"
        ) from None


def _clear(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise errors.ConfigError(f"{path}: is in the way and no socket; set another `socket`")
    if _answers(path):
        raise errors.AlreadyRunningError(
            f"{path}: a daemon answers there already; end it first, or set another `socket`"
        )
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (TimeoutError, BlockingIOError):
            # Its backlog is full: busy, and alive.
            return True
        return True


def _remove(path: Path, made: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        found = path.lstat()
        if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()
