"""Every state in which a power loss could leave a directory.

:class:`Recorder` notes what a program really does to the files of one directory (it calls
the real functions and writes down their effect). :func:`states` then makes crash states out
of the notes: what was synced is there; of what was not, any writes may be missing or torn,
and any tail of the changes of names. That is what POSIX promises and what disks do.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

import pytest

SECTOR = 512


@dataclass(frozen=True)
class Write:
    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    inode: int
    size: int


@dataclass(frozen=True)
class Sync:
    inode: int


@dataclass(frozen=True)
class Named:
    """*name* stands for *inode* from now on; for nothing, if None."""

    name: str
    inode: int | None


@dataclass(frozen=True)
class SyncNames:
    pass


Note = Write | Truncate | Sync | Named | SyncNames


@dataclass
class Recorder:
    """What happens in *directory*; used through :meth:`recording`."""

    directory: Path
    notes: list[Note] = field(default_factory=list)
    lock: RLock = field(default_factory=RLock)

    @contextmanager
    def recording(self, patch: pytest.MonkeyPatch) -> Iterator[Recorder]:
        """Note everything inside the block."""
        for name, wrapped in (
            ("open", self._open), ("pwrite", self._pwrite), ("write", self._write),
            ("ftruncate", self._ftruncate), ("fsync", self._fsync),
            ("fdatasync", self._fsync), ("rename", self._rename), ("link", self._link),
            ("unlink", self._unlink),
        ):  # fmt: skip
            patch.setattr(os, name, self._around(getattr(os, name), wrapped))
        try:
            yield self
        finally:
            patch.undo()

    def _around(self, real: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self.lock:
                before = self._names()
                result = real(*arguments, **options)
                note(before, result, *arguments)
                return result

        return call

    def _names(self) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(self.directory)}

    def _inode(self, fd: int) -> int | None:
        """Of a regular file in the directory; journals and data, not sockets."""
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        return os.fstat(fd).st_ino if path.parent == self.directory else None

    def _note_names(self, before: dict[str, int]) -> None:
        after = self._names()
        for name in sorted(after.keys() | before.keys(), key=lambda n: n not in after):
            if after.get(name) != before.get(name):
                self.notes.append(Named(name, after.get(name)))

    def _open(self, before: dict[str, int], fd: int, _path: Any, flags: int, *_: Any) -> None:
        self._note_names(before)
        inode = self._inode(fd)
        if inode is not None and flags & os.O_TRUNC:
            self.notes.append(Truncate(inode, 0))

    def _pwrite(self, _b: Any, count: int, fd: int, data: Any, offset: int) -> None:
        inode = self._inode(fd)
        if inode is not None:
            self.notes.append(Write(inode, offset, bytes(data)[:count]))

    def _write(self, _b: Any, count: int, fd: int, data: Any) -> None:
        inode = self._inode(fd)
        if inode is not None:
            end = os.lseek(fd, 0, os.SEEK_CUR)
            self.notes.append(Write(inode, end - count, bytes(data)[:count]))

    def _ftruncate(self, _b: Any, _r: Any, fd: int, size: int) -> None:
        inode = self._inode(fd)
        if inode is not None:
            self.notes.append(Truncate(inode, size))

    def _fsync(self, _b: Any, _r: Any, fd: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{fd}")) == self.directory:
            self.notes.append(SyncNames())
        elif (inode := self._inode(fd)) is not None:
            self.notes.append(Sync(inode))

    def _rename(self, before: dict[str, int], *_: Any) -> None:
        self._note_names(before)

    _link = _unlink = _rename


@dataclass
class CrashState:
    """Files by name, each with the inode number that it had."""

    files: dict[str, tuple[int, bytes]]


def states(notes: list[Note], chance: random.Random, count: int) -> Iterator[CrashState]:
    """*count* crash states, at moments spread over the whole recording, its end included."""
    for number in range(count):
        at = len(notes) * (number + 1) // count
        yield crash_at(notes[:at], chance)


def crash_at(notes: list[Note], chance: random.Random) -> CrashState:
    """One state that a crash right after *notes* may leave."""
    pending: dict[int, list[Write | Truncate]] = {}
    data: dict[int, bytearray] = {}
    names: dict[str, int | None] = {}
    renames: list[Named] = []
    for note in notes:
        if isinstance(note, Write | Truncate):
            pending.setdefault(note.inode, []).append(note)
        elif isinstance(note, Sync):
            for change in pending.pop(note.inode, []):
                _apply(data, change)
        elif isinstance(note, Named):
            renames.append(note)
        else:
            names.update((named.name, named.inode) for named in renames)
            renames = []
    for changes in pending.values():
        for change in _survivors(changes, chance):
            _apply(data, change)
    for named in renames[: chance.randint(0, len(renames))]:
        names[named.name] = named.inode
    return CrashState({n: (i, bytes(data.get(i, b""))) for n, i in names.items() if i is not None})


def _survivors(
    changes: list[Write | Truncate], chance: random.Random
) -> Iterator[Write | Truncate]:
    """Some of *changes*: all, none, or any, each perhaps torn at a sector."""
    share = chance.choice([0.0, 0.5, 0.9, 1.0])
    for change in changes:
        if chance.random() >= share:
            continue
        if isinstance(change, Write) and chance.random() < 0.3:
            kept = chance.randint(0, len(change.data) // SECTOR) * SECTOR
            yield Write(change.inode, change.offset, change.data[:kept])
        else:
            yield change


def _apply(data: dict[int, bytearray], change: Write | Truncate) -> None:
    content = data.setdefault(change.inode, bytearray())
    if isinstance(change, Truncate):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
        return
    end = change.offset + len(change.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[change.offset : end] = change.data
