"""Entries of the view as ``stat`` shows them."""

from __future__ import annotations

import os
import stat
from typing import Final

import pyfuse3

from ddfs.fuse import inodes
from ddfs.fuse.view import Entry, StorageFigures

# Everything that changes is told to the kernel, so that it may remember the rest for long:
# refreshing a pool of 1,000 files cost 8.1 s without these timeouts. The hour is for the
# notice that was lost all the same.
SETTLED_SECONDS: Final = 3600.0

# While a fetch runs, st_blocks is its progress. Nobody is told of every piece.
FETCHING_SECONDS: Final = 1.0

BLOCK: Final = 4096

# st_blocks counts these, whatever the block size (stat(2)).
_SECTOR: Final = 512

# `tar -S` takes a file with st_blocks 0 for one hole and writes zeros without reading.
_LEAST_SECTORS: Final = 8

_NAME_MAX: Final = 255

# Ours, once: a listing of 10,000 says them for each.
_UID: Final = os.getuid()
_GID: Final = os.getgid()


def directory(inode: int, mtime_ns: int) -> pyfuse3.EntryAttributes:
    """Attributes of one of the two directories."""
    attributes = _common(inode, stat.S_IFDIR | 0o555, mtime_ns)
    attributes.st_nlink = 3 if inode == inodes.ROOT else 2
    return attributes


def file(entry: Entry, bytes_here: int, is_fetching: bool) -> pyfuse3.EntryAttributes:
    """Attributes of a template as a regular file."""
    attributes = _common(inodes.file_inode(entry.row), stat.S_IFREG | 0o444, entry.mtime_ns)
    attributes.st_size = entry.size
    attributes.st_blocks = sectors(entry.size, bytes_here)
    if is_fetching:
        attributes.attr_timeout = FETCHING_SECONDS
    return attributes


def link(entry: Entry, target: str) -> pyfuse3.EntryAttributes:
    """Attributes of a published template: a symlink to *target*."""
    attributes = _common(inodes.link_inode(entry.row), stat.S_IFLNK | 0o777, entry.mtime_ns)
    attributes.st_size = len(os.fsencode(target))
    return attributes


def sectors(size: int, bytes_here: int) -> int:
    """``st_blocks`` of a file of *size* bytes of which *bytes_here* are stored."""
    if size == 0:
        return 0
    return max(_LEAST_SECTORS, -(-min(bytes_here, size) // _SECTOR))


def file_system(figures: StorageFigures, files: int) -> pyfuse3.StatvfsData:
    """What ``statfs`` answers: primary storage, which is where the bytes go."""
    answer = pyfuse3.StatvfsData()
    answer.f_bsize = answer.f_frsize = BLOCK
    answer.f_blocks = figures.total_bytes // BLOCK
    answer.f_bfree = answer.f_bavail = figures.free_bytes // BLOCK
    answer.f_files = files
    answer.f_ffree = answer.f_favail = 0
    answer.f_namemax = _NAME_MAX
    return answer


def _common(inode: int, mode: int, mtime_ns: int) -> pyfuse3.EntryAttributes:
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = inode
    attributes.st_mode = mode
    attributes.st_uid = _UID
    attributes.st_gid = _GID
    attributes.st_blksize = BLOCK
    attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = mtime_ns
    attributes.attr_timeout = attributes.entry_timeout = SETTLED_SECONDS
    return attributes
