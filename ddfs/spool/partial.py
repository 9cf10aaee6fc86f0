"""A file that is on its way: sparse data, and the journal that says what of it is true.

The fetch writes into ``fd`` itself; this is its :class:`ddfs.fetch.transfer.Target`. Both
files carry one lock, so that two processes never write one partial file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Self

import trio

from ddfs import errors
from ddfs.fetch.transfer import PieceRecord
from ddfs.model import Manifest
from ddfs.spool.journal import Journal, JournalHeader, sync_directory

# fsync of one file may take seconds on a busy disk; the others go on meanwhile.
_disk_limiter = trio.CapacityLimiter(16)


class PartialFile:
    """An open partial file. Its owner closes it; what is on disk then stays for a resume."""

    def __init__(self, path: Path, fd: int, journal: Journal) -> None:
        self.path = path
        self.fd = fd
        self._journal = journal
        self._appending = trio.Lock()
        # A note does not wait for the data of a commit, only for its words.
        self._writing = threading.Lock()
        self._has_lost = False

    @classmethod
    def open(cls, path: Path, journal_path: Path, manifest: Manifest) -> Self:
        """Open or make both files; blocks, so call it in a thread.

        What was fetched earlier is kept exactly when it belongs to the same content in the
        same grid and the data file is still the one that the journal was written for;
        otherwise both start empty. Raises :class:`errors.AlreadyRunningError` when another
        process has it, :class:`errors.StorageError` and :class:`errors.StorageFullError`.
        """
        with storage_errors(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                _lock(fd, path)
                journal = _matching_journal(fd, path, journal_path, manifest)
            except BaseException:
                os.close(fd)
                raise
        return cls(path, fd, journal)

    @property
    def has_journaled(self) -> bool:
        """It is the file that the journal speaks of."""
        return True

    def journaled(self) -> Sequence[PieceRecord]:
        """The pieces that earlier runs left on disk."""
        return self._journal.pieces()

    @property
    def bytes_here(self) -> int:
        """How many bytes the journal vouches for."""
        return self._journal.bytes_here

    async def commit(self, records: Sequence[PieceRecord]) -> None:
        """Put the data on disk, then say so. Durable on return.

        Cancellation waits for the disk: half a commit would leave the journal behind the
        data, which is safe but fetches twice. After a failure of the disk every commit fails.
        """

        def write() -> None:
            # What an earlier process left to the kernel is on disk then, too.
            noted = self._journal.noted()
            with storage_errors(self.path):
                self._sync()
                with self._writing:
                    self._journal.append([*noted, *records])

        async with self._appending:
            await trio.to_thread.run_sync(write, limiter=_disk_limiter)

    def _sync(self) -> None:
        """Put the data on disk. Blocks; raises OSError.

        What could not be written is lost, and the kernel says so only once (fsync(2)): who asked
        again would hear that all is well, and read it from memory.
        """
        if self._has_lost:
            raise OSError(errno.EIO, "what was written before could not be put on disk")
        try:
            os.fdatasync(self.fd)
        except OSError:
            self._has_lost = True
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with contextlib.suppress(OSError), self._writing:
                self._journal.void_notes()
            raise

    async def note(self, records: Sequence[PieceRecord]) -> None:
        """Say that these are in the file, for who comes after a ``kill -9`` of this process."""

        def write() -> None:
            with storage_errors(self.path), self._writing:
                if not self._has_lost:
                    self._journal.note(records)

        await trio.to_thread.run_sync(write, limiter=_disk_limiter)

    async def forget(self, pieces: Sequence[int]) -> None:
        """Journal that *pieces* turned out wrong."""

        def write() -> None:
            with storage_errors(self.path), self._writing:
                self._journal.forget(pieces)

        async with self._appending:
            await trio.to_thread.run_sync(write, limiter=_disk_limiter)

    def open_aside(self) -> IO[bytes]:
        """A file beside it that has no name. Raises OSError."""
        return tempfile.TemporaryFile(dir=self.path.parent, prefix=".ddfs-aside-", buffering=0)

    def discard_journal(self) -> None:
        """Forget the journal: the data has its name and its row."""
        self._journal.close()
        with contextlib.suppress(FileNotFoundError):
            self._journal.path.unlink()

    def close(self) -> None:
        """Close both files and give the lock back; twice is no mistake."""
        self._journal.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def set_aside(path: Path, journal_path: Path, manifest: Manifest, older: Path) -> None:
    """Rename the partial file at *path* to *older* if it is of another content; blocks.

    Nothing happens while somebody fetches into it. Raises OSError.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        journal = Journal.open(journal_path)
        if journal is None:
            return
        journal.close()
        if journal.header.content_id != manifest.content_id and journal.bytes_here:
            journal_path.unlink()
            path.rename(older)
    except BlockingIOError:
        return
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise errors.AlreadyRunningError(
            f"{path}: another ddfs is fetching into it; wait for it, or end it"
        ) from None


def _matching_journal(fd: int, path: Path, journal_path: Path, manifest: Manifest) -> Journal:
    grid = manifest.grid
    header = JournalHeader(
        content_id=manifest.content_id,
        size=grid.size,
        piece_length=grid.piece_length,
        has_document_pieces=manifest.pieces is not None,
        data_inode=os.fstat(fd).st_ino,
    )
    journal = Journal.open(journal_path)
    if journal is not None:
        if journal.header == header and os.fstat(fd).st_size == grid.size:
            return journal
        journal.close()
    # In this order: a journal of before must not vouch for data that was thrown away.
    with contextlib.suppress(FileNotFoundError):
        journal_path.unlink()
    sync_directory(journal_path.parent)
    os.ftruncate(fd, 0)
    os.ftruncate(fd, grid.size)
    os.fsync(fd)
    sync_directory(path.parent)
    return Journal.create(journal_path, replace(header, data_inode=os.fstat(fd).st_ino))


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Translate what the file system says about *path* into our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.StorageFullError(
                f"{path}: the disk is full; free some room, then try again"
            ) from error
        raise errors.StorageError(f"{path}: {error.strerror or error}") from error
