"""What is mounted where, read from /proc/self/mountinfo (proc_pid_mountinfo(5)).

Never by stat(): on a mount whose daemon hangs that does not come back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddfs import errors

log = logging.getLogger(__name__)

FSNAME: Final = "ddfs"
SUBTYPE: Final = "ddfs"
_TYPE: Final = f"fuse.{SUBTYPE}"

MOUNTINFO: Final = Path("/proc/self/mountinfo")
DEVICE: Final = Path("/dev/fuse")
CONTROL: Final = Path("/sys/fs/fuse/connections")

# Daemons that died one after the other leave their mounts in layers; more than this many
# are not removed but reported.
MAX_LAYERS: Final = 16

# How long a mount that seems to be ours may take to say that its daemon lives.
_LIFE_SIGN_SECONDS: Final = 2.0

_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo, as far as we need it. ``device`` is ``MAJOR:MINOR``."""

    device: str
    mountpoint: str
    fs_type: str
    fsname: str

    @property
    def is_ours(self) -> bool:
        """Whether some ddfs made it."""
        return self.fs_type == _TYPE and self.fsname == FSNAME

    @property
    def connection_id(self) -> int:
        """Its number in /sys/fs/fuse/connections, to be used when stat() would hang."""
        return int(self.device.partition(":")[2])


def parse(mountinfo: str) -> list[Mount]:
    """All mounts, in the kernel's order; lines that are not understood are passed over."""
    found = []
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if separator and len(fields) >= 6 and len(tail) >= 2:
            point, source = unescape(fields[4]), unescape(tail[1])
            found.append(Mount(fields[2], point, tail[0], source))
    return found


def unescape(field: str) -> str:
    r"""A field without its octal escapes: ``\040`` is a space."""
    raw = re.sub(
        rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 0xFF]), os.fsencode(field)
    )
    return os.fsdecode(raw)


def escape(path: str) -> str:
    """A path as mountinfo writes it (``seq_path_root`` in fs/proc_namespace.c)."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in path)


def top(mountpoint: Path) -> Mount | None:
    """What is mounted at exactly *mountpoint*, the uppermost if there are several."""
    text = MOUNTINFO.read_bytes().decode("utf-8", "surrogateescape")
    layers = [mount for mount in parse(text) if mount.mountpoint == str(mountpoint)]
    return layers[-1] if layers else None


def canonical(mountpoint: Path) -> Path:
    """*mountpoint* without symlinks on the way, its own last step untouched.

    Resolving that step would ask whatever is mounted there.
    """
    return Path(os.path.realpath(mountpoint.parent)) / mountpoint.name


def prepare(mountpoint: Path) -> Path:
    """Make *mountpoint* a directory with nothing mounted on it; returns its canonical path.

    Mounts of dead daemons are taken away. Raises :class:`errors.MountError` where something
    foreign or a living daemon's mount is in the way, where the directory cannot be used, and
    where FUSE is missing; nothing has been changed then. Blocks.
    """
    _require_fuse()
    path = canonical(mountpoint)
    for _ in range(MAX_LAYERS):
        mount = top(path)
        if mount is None:
            _make_directory(path)
            return path
        _remove_stale(mount, path)
    raise errors.MountError(f"{path}: {MAX_LAYERS} mounts of dead daemons and more; umount them")


def unmount(path: Path, *, lazily: bool) -> None:
    """umount2(2) of *path*, which is not followed if it is a symlink; ``OSError`` on failure.

    Lazily, it never blocks and works with files open: the name is free at once.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazily else 0)
    if _libc.umount2(os.fsencode(path), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def mount_control() -> None:
    """Mount fusectl, the file system of FUSE's control files; ``OSError`` on failure."""
    if _libc.mount(b"fusectl", os.fsencode(CONTROL), b"fusectl", 0, None) != 0:
        code = ctypes.get_errno()
        if code != errno.EBUSY:  # somebody was faster
            raise OSError(code, os.strerror(code), str(CONTROL))


def _require_fuse() -> None:
    try:
        is_device = stat.S_ISCHR(DEVICE.stat().st_mode)
    except OSError:
        is_device = False
    if not is_device:
        raise errors.MountError(
            f"{DEVICE} is not there: load the kernel's FUSE with `modprobe fuse`, or give the "
            "container that device"
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise errors.MountError(f"{DEVICE} may not be opened by this user: run ddfs as root")


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except FileExistsError:
        raise errors.MountError(f"{path} is not a directory: set another mountpoint") from None
    except OSError as error:
        raise errors.MountError(
            f"{path}: the mountpoint cannot be made: {error.strerror}"
        ) from error
    if path.is_symlink():
        raise errors.MountError(f"{path} is a symlink: set what it points to as the mountpoint")


def _remove_stale(mount: Mount, path: Path) -> None:
    if not mount.is_ours:
        raise errors.MountError(
            f"{path}: {mount.fs_type} from {mount.fsname} is mounted there: "
            "umount it, or set another mountpoint"
        )
    if _answers(mount, path):
        raise errors.MountError(
            f"{path}: another ddfs serves it: stop that one, or set another mountpoint"
        )
    log.warning("%s: taking away the mount of a daemon that died", path)
    try:
        unmount(path, lazily=True)
    except OSError as error:
        raise errors.MountError(
            f"{path}: the mount of a dead daemon cannot be taken away: {error.strerror}"
        ) from error


def _answers(mount: Mount, path: Path) -> bool:
    """Whether somebody serves *mount* at *path*; one that says nothing is aborted.

    A process of its own asks, because asking may never end, not even by SIGKILL.
    """
    asking = subprocess.Popen(
        ["stat", "--format=%i", "--", os.fspath(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return asking.wait(_LIFE_SIGN_SECONDS) == 0
    except subprocess.TimeoutExpired:
        # Whoever waits for a frozen daemon would do so for ever once its mount is gone.
        abort(mount.connection_id)
        asking.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            asking.wait(_LIFE_SIGN_SECONDS)
        return False


def abort(connection_id: int) -> None:
    """End a FUSE connection: whoever waits in it gets an error. Best effort."""
    try:
        (CONTROL / str(connection_id) / "abort").write_text("1\n")
    except OSError as error:
        log.debug("FUSE connection %d cannot be aborted: %s", connection_id, error)
