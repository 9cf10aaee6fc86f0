"""Verified bytes into a published file, in place, with a mark that outlives a crash.

The file keeps its inode and gets back its time of last write, by which it is known. Between
the two a crash would make it look like somebody else's: the mark says whose it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from ddfs.model import ByteRange, MiB, PublishedFile
from ddfs.primary import kernel, publish

MARK_SUFFIX: Final = ".mending"
_FRESH_SUFFIX: Final = ".mending-new"

_BLOCK_BYTES: Final = 1 * MiB


def mark_of(path: Path, directory: Path) -> Path:
    """Where it lies in *directory* that the file at *path* is mended."""
    return directory / (path.name + MARK_SUFFIX)


def mend(published: PublishedFile, mark: Path, source: int, ranges: Sequence[ByteRange]) -> None:
    """Copy *ranges* from the descriptor *source*, where they stand at the same places.

    Durable when it returns; protected as before, also after a failure. Raises ``OSError``. The
    mark stays only where the time of last write could not be put back.
    """
    _write_mark(mark, published)
    is_known = True
    try:
        with _writable(published.path) as target:
            if os.fstat(target).st_ino != published.inode:
                raise OSError(errno.ESTALE, "another file has its name by now")
            is_known = False
            try:
                for each in ranges:
                    copy_range(source, target, each)
                os.ftruncate(target, published.size)
                os.fdatasync(target)
            finally:
                _restore_time(target, published)
                is_known = True
    finally:
        if is_known:
            os.unlink(mark)
            kernel.sync_directory(mark.parent)


def finish_all(directory: Path) -> None:
    """Make files known again whose mending a crash cut off. Raises ``OSError``."""
    for fresh in directory.glob(f"*{_FRESH_SUFFIX}"):
        os.unlink(fresh)
    for mark in directory.glob(f"*{MARK_SUFFIX}"):
        promised = publish.read_mark(mark)
        found = publish.look_at(Path(promised.path)) if promised else None
        if promised and found and (found.inode, found.size) == (promised.inode, promised.size):
            with _writable(promised.path) as target:
                _restore_time(target, promised)
        os.unlink(mark)


@contextlib.contextmanager
def _writable(path: str) -> Iterator[int]:
    """A descriptor to write with. QEMU's user may read meanwhile, as it may always."""
    reading = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        kernel.set_immutable(reading, False)
        try:
            os.fchmod(reading, 0o644)
            writing = os.open(f"/proc/self/fd/{reading}", os.O_RDWR | os.O_CLOEXEC)
            try:
                yield writing
            finally:
                os.close(writing)
        finally:
            os.fchmod(reading, 0o444)
            kernel.set_immutable(reading, True)
            os.fsync(reading)
    finally:
        os.close(reading)


def copy_range(source: int, target: int, wanted: ByteRange) -> None:
    """All bytes of *wanted* from one descriptor to the same places of another; ``OSError``.

    Both calls may do less than they are asked for (pread(2), pwrite(2)).
    """
    at = wanted.start
    while at < wanted.end:
        data = os.pread(source, min(_BLOCK_BYTES, wanted.end - at), at)
        if not data:
            raise OSError(errno.EIO, f"what it is mended with ends at byte {at}")
        while data:
            written = os.pwrite(target, data, at)
            data, at = data[written:], at + written


def _restore_time(fd: int, published: PublishedFile) -> None:
    os.utime(fd, ns=(os.fstat(fd).st_atime_ns, published.mtime_ns))


def _write_mark(mark: Path, published: PublishedFile) -> None:
    fresh = mark.with_suffix(_FRESH_SUFFIX)
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(published)))
            file.flush()
            os.fsync(fd)
        os.replace(fresh, mark)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        raise
    kernel.sync_directory(mark.parent)
