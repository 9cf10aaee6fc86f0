"""Which paths lie under the mount, found out without ever asking the mount.

A look at a path under the mountpoint is a question to our own daemon, which may be the
one who wants to know, or dead; stat() on a dead mount hangs. So paths are followed here
one component at a time, with readlink(2), and the walk ends at the mountpoint.

Standard library only: the hook uses it.
"""

from __future__ import annotations

import os
from typing import Final

# As many as the kernel follows in one path (MAXSYMLINKS, path_resolution(7)).
MAX_LINKS: Final = 40

_MOUNTINFO: Final = "/proc/self/mountinfo"


class Mountpoint:
    """The mountpoint *path*, and everything one may say about paths without touching it.

    *path* is absolute. Directories above it, and the mountpoint itself as long as nothing
    is mounted there, may be symlinks.
    """

    def __init__(self, path: str, *, mountinfo: str = _MOUNTINFO) -> None:
        if not path.startswith("/"):
            raise ValueError(f"a mountpoint is absolute, not {path!r}")
        self.path = _normal(path)
        self._mountinfo = mountinfo
        self._names = frozenset(self._all_names())

    def _all_names(self) -> list[str]:
        parent, _, last = self.path.rpartition("/")
        real = _join(_follow(parent or "/", frozenset({self.path})), last)
        names = [self.path, real]
        if real in mounted_at(self._mountinfo):
            return names
        try:
            target = os.readlink(real)
        except OSError:
            return names
        return [*names, _follow(_join(os.path.dirname(real), target), frozenset())]

    def is_mounted(self) -> bool:
        """Whether something is mounted there now, dead or alive."""
        return not self._names.isdisjoint(mounted_at(self._mountinfo))

    def holds(self, path: str) -> bool:
        """Whether *path*, as :meth:`resolve` gives it, is the mountpoint or lies under it."""
        return path == self.path or path.startswith(self.path + "/")

    def resolve(self, path: str) -> str:
        """*path* without symlinks, up to the mountpoint and no further.

        What lies under the mountpoint by any name comes back under :attr:`path`. Missing
        components stay as they are; so does everything behind a loop of symlinks, which
        no one can open.
        """
        plain = _normal(path)
        if self.holds(plain):
            return plain
        found = _follow(path, self._names)
        for name in self._names:
            if found == name or found.startswith(name + "/"):
                return self.path + found[len(name) :]
        return found


def mounted_at(mountinfo: str = _MOUNTINFO) -> frozenset[str]:
    """The mount points of this mount namespace (proc(5)); none where /proc is not there."""
    try:
        with open(mountinfo, "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return frozenset()
    fields = (line.split(b" ", 5) for line in lines)
    return frozenset(os.fsdecode(_unescape(field[4])) for field in fields if len(field) == 6)


def _unescape(field: bytes) -> bytes:
    """Space, tab, newline and backslash stand as octal numbers in mountinfo."""
    head, *rest = field.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def _normal(path: str) -> str:
    """As normpath, which keeps two leading slashes, which mean nothing on Linux."""
    normal = os.path.normpath(path)
    return normal[1:] if normal.startswith("//") else normal


def _join(directory: str, name: str) -> str:
    return os.path.join(directory, name)


def _follow(path: str, stops: frozenset[str]) -> str:
    """*path* with symlinks replaced, but nothing at or under a path in *stops* looked at."""
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    here, links = "/", 0
    while todo:
        part = todo.pop()
        if part == "..":
            here = os.path.dirname(here)
            continue
        there = _join(here, part)
        if there in stops:
            rest = "/".join(reversed(todo))
            inside = _normal(_join(there, rest))
            if inside == there or inside.startswith(there + "/"):
                return inside
            # The path leaves the mount again through "..": go on from where it left.
            here, todo = "/", [p for p in reversed(inside.split("/")) if p]
            continue
        target = _link_target(there)
        if target is None or links >= MAX_LINKS:
            here = there
            continue
        links += 1
        here = "/" if target.startswith("/") else here
        todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
    return here


def _link_target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
    except ValueError:  # a NUL byte in the name
        return None
