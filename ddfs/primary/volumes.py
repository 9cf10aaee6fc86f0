"""The volumes of a libvirt pool (LVM, partitions, ZFS) as primary storage.

A template is fetched into a directory, the *staging*, and becomes a volume when it is complete.
The volume has the template's bytes as they were published, whatever format they are in; behind
them are zeros, since a device is rounded up, and at its very end the label that says whose it
is. It counts as published when all of it was read back from the disk and is right:

====== ============================================== ====================================
step   does                                           a crash behind it leaves
====== ============================================== ====================================
vow    writes down, durably, how it is called         at most a volume without a label
make   makes the volume, and its label                a volume of ours, to be deleted
fill   uploads the bytes                              the same
prove  reads it back, sets it read-only, writes down  everything
       that it is complete
====== ============================================== ====================================
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from ddfs import errors
from ddfs.model import ByteRange, MiB, PublishedFile
from ddfs.primary import device, mend
from ddfs.primary.directory import DirectoryStorage
from ddfs.primary.ownership import LABEL_LENGTH, OwnedVolume, Ownership
from ddfs.primary.room import Ledger, Room
from ddfs.primary.stems import content_of

log = logging.getLogger(__name__)

# Volumes whose kind of pool lets us name them begin with this. Kinds differ in what may follow;
# letters and digits may in all.
NAME_PREFIX: Final = "ddfs-"
_NAME_DIGITS: Final = 24

# What a volume is asked to be larger than its template: so much on average, by a number of blocks
# that is drawn. A partition has no name of ours, and its size tells it from another's.
_EXTRA_BLOCKS: Final = 256

# Somebody else may make a partition between our look and our turn.
_TRIES: Final = 3


class MadeVolume(Protocol):
    """A volume that was made."""

    @property
    def name(self) -> str:
        """Its name in the pool."""

    @property
    def path(self) -> str:
        """Its device."""

    @property
    def capacity(self) -> int:
        """Its size in bytes."""


class Pool(Protocol):
    """A pool that makes volumes. All raise :class:`errors.LibvirtError`."""

    @property
    def name(self) -> str:
        """Libvirt's name of it."""

    def room(self) -> tuple[int, int]:
        """Size and free bytes, as of now."""

    def name_for(self, wanted: str) -> str:
        """How a new volume is going to be called."""

    def create(self, name: str, size: int) -> MadeVolume:
        """Make one; :class:`errors.NameTakenError`, :class:`errors.StorageFullError`."""

    def upload(
        self, name: str, source: int, size: int, length: int, check: Callable[[], object]
    ) -> None:
        """Write *length* bytes: *size* of the descriptor *source*, then zeros."""

    def find(self, name: str) -> MadeVolume | None:
        """The volume of that name."""

    def delete(self, name: str) -> None:
        """Delete one; none there is fine."""


class VolumeStorage(DirectoryStorage):
    """As its base, with *staging* as the directory, but what is published is in *pool*.

    ``prepare`` and what a recovery calls never ask libvirt: at boot its socket may answer only
    once the daemon is ready. The limits are the pool's. ``check`` is called often while a volume
    is written, and may raise to end that.
    """

    makes_devices = True

    def __init__(
        self,
        name: str,
        staging: Path,
        pool: Pool,
        *,
        quota: Callable[[int], int] | None = None,
        keep_free: Callable[[int], int] | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(name, staging)
        self._pool = pool
        self._volume_quota = quota
        self._volume_keep_free = keep_free
        self._check_cancelled = check
        self._promises = Ledger()
        self._measured = (0, 0)

    @property
    def place(self) -> str:
        """What its room is counted for."""
        return f"libvirt pool {self._pool.name}"

    @property
    def _owned(self) -> Ownership:
        return Ownership(self.partial_dir)

    # Volumes

    def publish(self, partial: Path, name: str) -> PublishedFile:
        """Make the complete and verified *partial* a read-only volume.

        Raises as the base does, :class:`errors.LibvirtError`, and what ``check`` raises;
        nothing of the volume stays then, or the next call takes it away.
        """
        content_id = content_of(partial.name.partition(".")[0])
        if content_id is None or partial.parent != self.partial_dir:
            raise ValueError(f"{partial} is not in {self.partial_dir}")
        with self._translated(f"cannot publish {name}"):
            if (done := self._finished(content_id)) is not None:
                return done
            self._take_away(content_id)
            source = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                size = os.fstat(source).st_size
                volume = self._make(content_id, size)
                try:
                    published = self._fill(volume, source, size)
                    self._owned.write(content_id, replace(volume, published=published))
                except BaseException:
                    with contextlib.suppress(errors.DdfsError, OSError):
                        self._take_away(content_id)
                    raise
            finally:
                os.close(source)
        log.info("%s: volume %s of %s", name, volume.name, self.place)
        self._counted(published, volume)
        with self._room_lock:
            self._promises.release(content_id)
        return published

    def _make(self, content_id: str, size: int) -> OwnedVolume:
        wanted = NAME_PREFIX + hashlib.sha256(content_id.encode()).hexdigest()[:_NAME_DIGITS]
        blocks = -(-size // LABEL_LENGTH) + 1
        for number in range(1, _TRIES + 1):
            name = self._pool.name_for(wanted)
            length = (blocks + secrets.randbelow(_EXTRA_BLOCKS)) * LABEL_LENGTH
            vowed = OwnedVolume(name, secrets.token_hex(16), capacity=length)
            self._owned.write(content_id, vowed)
            try:
                made = self._pool.create(name, length)
            except (errors.NameTakenError, errors.StorageFullError) as error:
                # Nothing was made. After any other error nobody knows: the vow stays.
                self._owned.remove(content_id)
                is_raced = isinstance(error, errors.NameTakenError) and name != wanted
                if is_raced and number < _TRIES:
                    continue
                raise
            volume = replace(vowed, path=made.path, capacity=made.capacity)
            volume.write_label()
            self._owned.write(content_id, volume)
            return volume
        raise AssertionError("the last try returns or raises")

    def _fill(self, volume: OwnedVolume, source: int, size: int) -> PublishedFile:
        length = volume.capacity - LABEL_LENGTH
        self._pool.upload(volume.name, source, size, length, self._check_cancelled)
        with device.opened(volume.path) as fd:
            device.settle(fd)
            wrong = device.first_difference(fd, source, size, length, self._check_cancelled)
            if wrong is not None or not volume.is_labelled():
                raise errors.StorageError(
                    f"{volume.path} reads wrong at byte {wrong or 0} after it was written; look at "
                    "the disk"
                )
            if not device.set_read_only(fd, True):
                log.info("%s: cannot be set read-only, nothing protects it", volume.path)
            number, fingerprint = device.number_of(fd), device.fingerprint(fd, size)
            return PublishedFile(volume.path, number, 0, size, fingerprint)

    def _finished(self, content_id: str) -> PublishedFile | None:
        volume = self._owned.read(content_id)
        if volume is None or volume.published is None or not self.is_intact(volume.published):
            return None
        return self.located(volume.published)

    def _take_away(self, content_id: str) -> None:
        """Delete the volume of a content, if there is one that is ours, and its record."""
        volume = self._owned.read(content_id)
        if volume is None:
            return
        if not volume.path:
            self._take_away_unlabelled(volume)
        elif self._is_there_now(volume):
            if volume.is_labelled():
                self._delete(volume)
            else:
                log.warning("%s: was made by ddfs and is another's now; it stays", volume.path)
        self._owned.remove(content_id)

    def _is_there_now(self, volume: OwnedVolume) -> bool:
        """Whether it is there when the pool is active; raises :class:`errors.LibvirtError`."""
        if not _is_there(volume):
            self._measure()
        return _is_there(volume)

    def _take_away_unlabelled(self, volume: OwnedVolume) -> None:
        """What a crash left while it was made."""
        found = self._pool.find(volume.name)
        if found is None:
            return
        if volume.name.startswith(NAME_PREFIX) or found.capacity == volume.capacity:
            self._delete(replace(volume, path=found.path))
            return
        log.warning(
            "%s: volume %s is there, and was not when ddfs was killed before it made one of that "
            "name; if it has nothing of yours, run: virsh vol-delete %s %s",
            *(self.place, volume.name, volume.name, self._pool.name),
        )

    def _delete(self, volume: OwnedVolume) -> None:
        """Raises :class:`errors.StorageError` for one in use: parted would delete its entry."""
        with device.opened(volume.path) as fd:
            number = device.number_of(fd)
        if users := device.users(number):
            raise errors.StorageError(f"{volume.path} is not deleted: {users[0]} has it open")
        self._pool.delete(volume.name)

    def finish_publishing(self, content_id: str) -> PublishedFile | None:
        """What was complete when a crash came, or is there again; else None."""
        with self._translated("cannot finish publishing"):
            return self._finished(content_id)

    def adopt(self, name: str) -> PublishedFile:
        """Nothing in the staging is published."""
        raise errors.StorageError(f"{self.path / name}: move it away; it is no template's volume")

    def identify(self, path: Path) -> PublishedFile | None:  # noqa: ARG002
        """Nothing in the staging is published."""
        return None

    def files_of_size(self, size: int) -> list[Path]:  # noqa: ARG002
        """Volumes have no size but their device's."""
        return []

    def located(self, published: PublishedFile) -> PublishedFile:
        """As it is found now: device numbers change at a reboot."""
        with self._translated("cannot look at a volume"), device.opened(published.path) as fd:
            return replace(published, device=device.number_of(fd))

    def is_intact(self, published: PublishedFile) -> bool:
        """Whether it is there and samples of it are right; it is read-only (again) then."""
        try:
            with device.opened(published.path) as fd:
                is_intact = (
                    device.size_of(fd) >= published.size
                    and device.fingerprint(fd, published.size) == published.mtime_ns
                )
                if is_intact:
                    device.set_read_only(fd, True)
        except OSError:
            is_intact = False
        if is_intact:
            self._counted(published, self._volume_at(published.path))
        else:
            self._count_no_more(published)
        return is_intact

    def _volume_at(self, path: str) -> OwnedVolume | None:
        return next((v for _, v in self._owned.all() if v.path == path), None)

    def _counted(self, published: PublishedFile, volume: OwnedVolume | None) -> None:
        with self._room_lock:
            self._taken[published.path] = volume.capacity if volume else published.size

    def mend(self, published: PublishedFile, source: int, ranges: Sequence[ByteRange]) -> None:
        """Write *ranges* of *source* into the device, under whoever has it open."""
        with (
            self._translated(f"cannot mend {published.path}"),
            device.opened(published.path) as fd,
        ):
            device.set_read_only(fd, False)
            try:
                with device.opened(published.path, os.O_RDWR) as target:
                    for each in ranges:
                        mend.copy_range(source, target, each)
                    device.settle(target)
            finally:
                device.set_read_only(fd, True)

    def purge(self, published: PublishedFile) -> None:
        """Delete the volume; gone already is fine, another one in its place is refused."""
        with self._translated(f"cannot delete {published.path}"):
            owned = {v.path: (content_id, v) for content_id, v in self._owned.all()}
            content_id, volume = owned.get(published.path, ("", None))
            if os.path.exists(published.path):
                if volume is None or not volume.is_labelled():
                    raise errors.StorageError(
                        f"{published.path} is not what ddfs put there any more; it was not deleted"
                    )
                self._delete(volume)
            if volume is not None:
                self._owned.remove(content_id)
        self._count_no_more(published)
        with contextlib.suppress(errors.LibvirtError):
            self._measure()

    def discard(self, content_id: str) -> None:
        """What is unfinished, in the staging and in the pool."""
        super().discard(content_id)
        with self._translated("cannot remove a volume"):
            volume = self._owned.read(content_id)
            if volume is not None and (
                volume.published is None or volume.published.path not in self._taken
            ):
                self._take_away(content_id)

    def leftovers(self) -> dict[str, int]:
        """As the base, and volumes that are unfinished or that nobody knows any more."""
        with contextlib.suppress(errors.LibvirtError):
            self._measure()
        found = super().leftovers()
        with self._translated("cannot look at volumes"):
            for content_id, volume in self._owned.all():
                is_known = volume.published is not None and volume.path in self._taken
                if not is_known and content_id not in self._promises:
                    found[content_id] = found.get(content_id, 0) + volume.capacity
        return found

    # Room

    def reserve(self, content_id: str, length: int) -> None:
        """Room for *length* bytes in the staging, and for a volume of so many."""
        try:
            super().reserve(content_id, length)
        except errors.StorageFullError as error:
            # No volume that goes would help there.
            raise errors.StorageFullError(str(error)) from error
        with self._translated("cannot remove a volume"):
            volume = self._owned.read(content_id)
            if volume and volume.published and self._is_there_now(volume):
                return  # it is being mended, which takes no room, or was not to be seen before
            self._take_away(content_id)
        total, free = self._measure()
        quota = self._volume_quota(total) if self._volume_quota is not None else None
        keep_free = self._volume_keep_free(total) if self._volume_keep_free is not None else 0
        with self._room_lock:
            promises, held = self._promises, sum(self._taken.values())
            missing = promises.missing(content_id, length, 0, total, free, keep_free=keep_free)
            if quota is not None:
                missing = max(missing, promises.over_quota(content_id, length, 0, held, quota))
            if missing:
                raise errors.StorageFullError(
                    f"{self.place}: {-(-missing // MiB)} MiB more are needed for a volume of "
                    f"{-(-length // MiB)} MiB; free some with ddfs gc, or make the pool or "
                    f"primary.{self.name}.quota larger",
                    missing,
                )
            promises.promise(content_id, length + LABEL_LENGTH, 0)

    def release(self, content_id: str) -> None:
        """Give both back."""
        super().release(content_id)
        with self._room_lock:
            self._promises.release(content_id)

    def _measure(self) -> tuple[int, int]:
        self._measured = self._pool.room()
        return self._measured

    def figures(self) -> tuple[int, int]:
        """Of the pool, when it was last asked: asking takes a call of libvirt."""
        return self._measured

    def room(self) -> Room:
        """How full the pool is."""
        total, free = self._measured
        with self._room_lock:
            held = sum(self._taken.values()) + self._promises.promised()
        return Room(
            total,
            free,
            held,
            self._volume_quota(total) if self._volume_quota is not None else None,
            self._volume_keep_free(total) if self._volume_keep_free is not None else 0,
        )


def _is_there(volume: OwnedVolume) -> bool:
    return os.path.exists(volume.path)
