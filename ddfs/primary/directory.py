"""A directory of this host as primary storage.

Partial files lie on the same file system as the published ones, so that publishing is a
rename and never a copy.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ddfs import errors
from ddfs.model import ByteRange, Digest, PublishedFile
from ddfs.primary import kernel, mend, preparation, publish
from ddfs.primary.room import Ledger, Room, megabytes
from ddfs.primary.stems import content_of, stem_of

log = logging.getLogger(__name__)

_PARTIAL_SUFFIX: Final = ".part"
_UNPACKED_SUFFIX: Final = ".unpacked"
_UNPACKED_PARTIAL_SUFFIX: Final = _UNPACKED_SUFFIX + _PARTIAL_SUFFIX
_JOURNAL_SUFFIX: Final = ".journal"
_LOCK_NAME: Final = "lock"

# Each costs a look at all its bytes.
MAX_ALIKE: Final = 4

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


class DirectoryStorage:
    """The directory *path*, called *name* in the settings.

    ``prepare`` comes first and ``close`` last, each once and alone. Between them every
    method may run in any thread at any time; two calls about one content are the caller's
    to keep apart (the spool has one fetch per content). All raise
    :class:`errors.StorageError`, and :class:`errors.StorageFullError` when the disk is full.
    """

    # Whether what is published are block devices.
    makes_devices: bool = False

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        quota: Callable[[int], int] | None = None,
        keep_free: Callable[[int], int] | None = None,
    ) -> None:
        """*quota* and *keep_free* get the size of the file system; both sides are bytes."""
        self.name = name
        self.path = path
        # With other hosts: see ddfs.primary.shared.
        self.is_shared = False
        self._quota = quota
        self._keep_free = keep_free
        self._partial_dir: Path | None = None
        self._device = -1
        self._lock_fd = -1
        self._room = Ledger()
        self._room_lock = threading.Lock()
        # What published files take, by path: they count against the quota.
        self._taken: dict[str, int] = {}
        # Whose times change because we write: those files are known by the rest.
        self._mending: set[str] = set()

    @property
    def partial_dir(self) -> Path:
        """Where partial files and journals lie; found by ``prepare``."""
        if self._partial_dir is None:
            raise RuntimeError("prepare() comes first")
        return self._partial_dir

    @property
    def place(self) -> str:
        """What its room is counted for: the device that its files are on, by ``prepare``."""
        return f"device {self._device}"

    def prepare(self) -> None:
        """Check the directory, find the place for partial files, lock it.

        The place is ``.ddfs-BASENAME`` beside the directory if a rename from there into it
        works, because libvirt lists everything in a pool as a volume; else ``.ddfs`` in it.
        Only trying tells: a bind mount has the same st_dev and still gives EXDEV.
        Raises :class:`errors.AlreadyRunningError` when another process holds the lock.
        After a failure nothing is held.
        """
        if self._lock_fd >= 0:
            raise RuntimeError("prepare() once")
        preparation.check(self.path, self.name)
        self._partial_dir = self._find_partial_dir()
        with self._translated("cannot lock"):
            self._lock_fd = preparation.lock(self._partial_dir / _LOCK_NAME, self.path)
        with self._translated("cannot be read"):
            preparation.sweep_probes(self.path)
        with self._translated("cannot finish mending a file"):
            mend.finish_all(self._partial_dir)

    def close(self) -> None:
        """Let go of the lock; partial files stay."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = -1

    # Files

    def partial_path(self, content_id: str) -> Path:
        """Where the partial file of *content_id* lies, whether it is there or not."""
        return self.partial_dir / (stem_of(content_id) + _PARTIAL_SUFFIX)

    def journal_path(self, content_id: str) -> Path:
        """Where its journal lies."""
        return self.partial_dir / (stem_of(content_id) + _JOURNAL_SUFFIX)

    def unpacked_path(self, content_id: str) -> Path:
        """Where what comes out of a packed content grows; it has a publishing mark of its own."""
        return self.partial_dir / (stem_of(content_id) + _UNPACKED_PARTIAL_SUFFIX)

    def publish(self, partial: Path, name: str) -> PublishedFile:
        """Make the complete and verified *partial* the read-only file *name* in the directory.

        Durable when it returns. Can be called again after a crash or an error at any point,
        also when *partial* has been moved already; then the file may have the name that the
        first call gave it. Once the result is recorded, call ``discard``.
        Raises :class:`errors.NameTakenError` when a file that is not ours has the name.
        """
        if partial.parent != self.partial_dir:
            raise ValueError(f"{partial} is not in {self.partial_dir}")
        with self._translated(f"cannot publish {name}"):
            published = publish.Publication(partial, self.path / publish.file_name(name)).run()
        self._count(published, partial)
        return published

    def finish_publishing(self, content_id: str) -> PublishedFile | None:
        """Finish a ``publish`` that a crash cut off when the name was there already.

        None when there was none: it had not come so far, or somebody took the file away.
        """
        for partial in (self.partial_path(content_id), self.unpacked_path(content_id)):
            with self._translated("cannot finish publishing"):
                published = publish.finish(partial)
            if published is not None:
                self._count(published, partial)
                return published
        return None

    def adopt(self, name: str) -> PublishedFile:
        """Protect the file *name* as ``publish`` does; the caller has verified its bytes.

        Raises :class:`errors.StorageError` when it is no regular file (any more), and
        :class:`errors.StorageFullError` when it would break the quota.
        """
        path = self.path / publish.file_name(name)
        with self._translated(f"cannot protect {name}"):
            if not self.is_shared and str(path) not in self._taken:
                taken = os.lstat(path).st_blocks * 512
                with self._room_lock:
                    self._refuse_over_quota("", taken, 0, self._file_system()[0])
            published = publish.protect(path)
        self._count(published)
        return published

    def discard(self, content_id: str) -> None:
        """Remove the partial file, the journal and the publishing mark; none there is fine."""
        stem = stem_of(content_id)
        with self._translated("cannot remove a partial file"):
            for suffix in (
                _JOURNAL_SUFFIX,
                _PARTIAL_SUFFIX,
                _UNPACKED_PARTIAL_SUFFIX,
                publish.FRESH_MARK_SUFFIX,
                publish.MARK_SUFFIX,
                _UNPACKED_SUFFIX + publish.FRESH_MARK_SUFFIX,
                _UNPACKED_SUFFIX + publish.MARK_SUFFIX,
            ):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.partial_dir / (stem + suffix))

    def identify(self, path: Path) -> PublishedFile | None:
        """The regular file at *path* as it is now; None for anything else. Follows no link."""
        with self._translated(f"cannot look at {path}"):
            return publish.look_at(path)

    def files_of_size(self, size: int) -> list[Path]:
        """At most ``MAX_ALIKE`` regular files of *size* bytes in the directory.

        One of them may be the very image that somebody wants, put there by hand.
        """
        found: list[Path] = []
        with self._translated("cannot be read"), os.scandir(self.path) as entries:
            for entry in entries:
                if len(found) == MAX_ALIKE:
                    break
                with contextlib.suppress(FileNotFoundError):
                    if (
                        entry.is_file(follow_symlinks=False)
                        and entry.stat(follow_symlinks=False).st_size == size
                    ):
                        found.append(Path(entry.path))
        return found

    def is_intact(self, published: PublishedFile) -> bool:
        """Whether *published* is still the file that was published.

        Inode, size and mtime; the device must be the one of then or the storage's of now,
        since device numbers change at a reboot. Owner and ctime are libvirt's to change.
        One that is intact counts against the quota from now on, one that is not does no more.
        """
        is_intact = (
            self._is_intact(published)
            or (self._is_mended(published) and self._is_intact(published, is_mended=True))
            # The mending may have ended between the first look and the second.
            or self._is_intact(published)
        )
        if is_intact:
            self._count(published)
        else:
            self._count_no_more(published)
        return is_intact

    def located(self, published: PublishedFile) -> PublishedFile:
        """As it is found now: device numbers change at a reboot."""
        found = self.identify(Path(published.path))
        return published if found is None else replace(published, device=found.device)

    def mend(self, published: PublishedFile, source: int, ranges: Sequence[ByteRange]) -> None:
        """Write *ranges*, which the descriptor *source* has at the same places, into it.

        In place, because a running QEMU has the inode open; the caller has verified the
        bytes. It stays the file that was published, also after a crash in the middle.
        """
        path = Path(published.path)
        if not self.is_intact(published):
            raise errors.StorageError(
                f"{path} is not the file that ddfs put there any more, or was written to: it is "
                "left alone; delete it by hand, run ddfs doctor --fix, and it is fetched again"
            )
        mark = mend.mark_of(path, self.partial_dir)
        self._mending.add(published.path)
        try:
            with self._translated(f"cannot mend {path}"):
                mend.mend(published, mark, source, ranges)
        finally:
            self._mending.discard(published.path)

    def _is_intact(self, published: PublishedFile, *, is_mended: bool = False) -> bool:
        found = self.identify(Path(published.path))
        if found is None or found.device not in (published.device, self._device):
            return False
        if is_mended:
            return found.inode == published.inode
        return publish.is_same_file(found, published)

    def _is_mended(self, published: PublishedFile) -> bool:
        """Whether somebody writes true bytes into it now, so that its time is another one."""
        return published.path in self._mending

    def purge(self, published: PublishedFile) -> None:
        """Delete *published*; gone already is fine, another file in its place is refused."""
        path = Path(published.path)
        if self.identify(path) is None and not os.path.lexists(path):
            self._count_no_more(published)
            return
        if not self.is_intact(published):
            raise errors.StorageError(
                f"{path} is not the file that ddfs put there any more; it was not deleted"
            )
        with self._translated(f"cannot delete {path}"):
            kernel.unlink_immutable(path)
            kernel.sync_directory(path.parent)
        self._count_no_more(published)

    def claim(self, _content_id: str) -> bool:
        """Whether it may be fetched now: always, since nobody else has this storage."""
        return True

    def holder(self, _content_id: str) -> str | None:
        """Which other host keeps this one from fetching it: none."""
        return None

    def disclaim(self, _content_id: str) -> None:
        """The fetch is over."""

    def say(self, _content_id: str, _size: int, _digest: Digest) -> None:
        """Nobody is there to be told."""

    def said_of(self, _content_id: str) -> tuple[int, Digest] | None:
        """Nothing: only this host publishes here."""
        return None

    # Room

    def reserve(self, content_id: str, length: int) -> None:
        """Promise room for *length* bytes in all to *content_id*, in place of an older promise.

        What its partial file has already does not count twice. Raises
        :class:`errors.StorageFullError`, and then an older promise still holds.
        """
        with self._room_lock:
            for other in {*self._room.contents(), content_id}:
                self._room.note_written(other, self._allocated(other))
            written = self._allocated(content_id)
            self._refuse_without_room(content_id, length, written)
            self._room.promise(content_id, length, written)

    def _refuse_without_room(self, content_id: str, length: int, written: int) -> None:
        total, free = self._file_system()
        self._refuse_over_quota(content_id, length, written, total)
        keep_free = self._keep_free(total) if self._keep_free is not None else 0
        missing = self._room.missing(content_id, length, written, total, free, keep_free=keep_free)
        if missing:
            kept = f", {megabytes(keep_free)} of them kept free" if keep_free else ""
            raise errors.StorageFullError(
                f"{self.path}: {megabytes(missing)} more are needed ({megabytes(length)} in "
                f"all, {megabytes(free)} free, {megabytes(self._room.outstanding())} of them "
                f"promised to other fetches{kept}); free some room, then try again",
                missing,
            )

    def _refuse_over_quota(self, content_id: str, length: int, written: int, total: int) -> None:
        if self._quota is None:
            return
        held, quota = self._held(besides=content_id), self._quota(total)
        missing = self._room.over_quota(content_id, length, written, held, quota)
        if missing:
            raise errors.StorageFullError(
                f"{self.path}: {megabytes(length)} more would be {megabytes(missing)} over the "
                f"quota of {megabytes(quota)}; free some with ddfs gc, or raise "
                f"primary.{self.name}.quota",
                missing,
            )

    def note_written(self, content_id: str, length: int) -> None:
        """*length* bytes of the partial file are written, those of earlier runs included.

        Optional: ``reserve`` looks at the files' blocks itself. It helps where the file
        system compresses. Never blocks on I/O, but for a ``reserve`` in another thread.
        """
        with self._room_lock:
            self._room.note_written(content_id, length)

    def release(self, content_id: str) -> None:
        """Give the promised room back; none is fine."""
        with self._room_lock:
            self._room.release(content_id)

    def figures(self) -> tuple[int, int]:
        """Size of the file system and what an ordinary user could still write, in bytes."""
        return self._file_system()

    def _file_system(self) -> tuple[int, int]:
        with self._translated("cannot ask for free room"):
            answer = os.statvfs(self.path)
        return answer.f_blocks * answer.f_frsize, answer.f_bavail * answer.f_frsize

    def room(self) -> Room:
        """How full it is, by its own limits."""
        total, free = self.figures()
        with self._room_lock:
            held = self._held() + self._room.promised()
        return Room(
            total,
            free,
            held,
            self._quota(total) if self._quota is not None else None,
            self._keep_free(total) if self._keep_free is not None else 0,
        )

    def leftovers(self) -> dict[str, int]:
        """The contents of which there is partial data that no fetch works on, with its bytes."""
        with self._room_lock, self._translated("cannot look at partial files"):
            return self._leftovers()

    def _leftovers(self) -> dict[str, int]:
        promised = {self.partial_path(content_id).name for content_id in self._room.contents()}
        found = {}
        for entry in os.scandir(self.partial_dir):
            stem, suffix = os.path.splitext(entry.name)
            content_id = content_of(stem)
            if suffix != _PARTIAL_SUFFIX or entry.name in promised or content_id is None:
                continue
            with contextlib.suppress(FileNotFoundError):
                found[content_id] = entry.stat(follow_symlinks=False).st_blocks * 512
        return found

    def _held(self, besides: str = "") -> int:
        """What files of ours take that no promise is for, and that are not of *besides*."""
        with self._translated("cannot look at partial files"):
            leftovers = self._leftovers()
        leftovers.pop(besides, None)
        return self._published_bytes() + sum(leftovers.values())

    def _published_bytes(self) -> int:
        return sum(self._taken.values())

    def _count(self, published: PublishedFile, partial: Path | None = None) -> None:
        """*published* is ours; what was promised to *partial* is used up."""
        try:
            taken = os.lstat(published.path).st_blocks * 512
        except OSError:
            taken = published.size
        with self._room_lock:
            self._taken[published.path] = taken
            for content_id in self._room.contents():
                if partial in (self.partial_path(content_id), self.unpacked_path(content_id)):
                    self._room.release(content_id)

    def _count_no_more(self, published: PublishedFile) -> None:
        with self._room_lock:
            self._taken.pop(published.path, None)

    def _allocated(self, content_id: str) -> int:
        taken = 0
        with self._translated("cannot look at a partial file"):
            for path in (self.partial_path(content_id), self.unpacked_path(content_id)):
                with contextlib.suppress(FileNotFoundError):
                    taken += os.lstat(path).st_blocks * 512
        return taken

    def _find_partial_dir(self) -> Path:
        with self._translated("cannot be written to"):
            directory, self._device = preparation.find_partial_dir(self.path)
        return directory

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _FULL:
                raise errors.StorageFullError(
                    f"{self.path}: {doing}: {reason}; free some room, then try again"
                ) from error
            raise errors.StorageError(f"{self.path}: {doing}: {reason}") from error
