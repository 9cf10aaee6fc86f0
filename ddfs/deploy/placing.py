"""Disk and seed of a deployment: files of a pool, or images in Ceph.

What is about to be made is written down before. Hosts may share the pool, and another one may
make the same name by the time it is taken back: a file has a mark for that, and of an image it
is written down that it is ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import trio

from ddfs import errors
from ddfs.clone import CloneOrder, Images
from ddfs.deploy.order import Deployed, DeployOrder
from ddfs.deploy.ports import Disks, Pools
from ddfs.deploy.traces import ANNOUNCED, LEAVING, OURS, Notes, Traces
from ddfs.image.disk import NewDisk
from ddfs.image.seed_disk import seed_disk
from ddfs.model import GiB, RbdPool, Template, size_text

T = TypeVar("T")

log = logging.getLogger(__name__)

# An overlay begins with some hundred KiB and grows with what the guest writes.
ROOM_FOR_OVERLAY_BYTES: Final = GiB // 4

# VIR_ERR_NO_STORAGE_POOL: nobody can make what lies there active any more.
_NO_POOL: Final = 49

_limiter = trio.CapacityLimiter(1)


class Places:
    """Makes them in libvirt's pools, and takes them back.

    *settle* sees to it that nothing is to be deleted any more under the name of an image, given
    its pool and name.
    """

    def __init__(
        self,
        disks: Disks,
        pools: Pools,
        images: Images,
        notes: Notes,
        settle: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._disks = disks
        self._pools = pools
        self._images = images
        self._notes = notes
        self._settle = settle

    async def obstacles(self, order: DeployOrder, template: Template | None) -> list[str]:
        """Why nothing can be made there; raises :class:`errors.DdfsError` likewise."""
        if await self._images.find(order.pool) is None:
            directory = await self._pools.directory(order.pool)
            return await _run(obstacles_in, directory, order)
        if not order.untested:
            return [_untested(order.pool)]
        disk, seed = _images_of(order)
        found = [
            f"pool {order.pool} has a volume {image} already"
            for image in ((disk, seed) if order.user_data is not None else (disk,))
            if await self._images.has(order.pool, image)
        ]
        free = await self._images.free_bytes(order.pool)
        if template is not None and free < template.size:
            found.append(f"pool {order.pool} has only {size_text(free)} free")
        return found

    async def make(self, order: DeployOrder, template: str, traces: Traces) -> Deployed:
        """Make disk and seed; after an error :meth:`clear` takes back what *traces* say.

        Raises :class:`errors.NameTakenError` for what is there already, and as
        :class:`ddfs.clone.Clones` does.
        """
        pool = await self._images.find(order.pool)
        if pool is None:
            return await self._make_files(order, template, traces)
        return await self._make_images(order, template, traces, pool)

    async def _make_files(self, order: DeployOrder, template: str, traces: Traces) -> Deployed:
        directory = await self._pools.directory(order.pool)
        disk = directory / f"{order.name}.qcow2"
        await self._announce(traces, disk)
        # The version that was looked at: a newer one may come meanwhile.
        clone = CloneOrder(template, disk.name, order.pool, order.disk_size, mark=traces.uuid)
        with _unless_taken(traces, disk):
            await self._disks.make(clone, Noted(traces, self._notes, self._settle))
        seed = None
        if order.user_data is not None:
            seed = directory / f"{order.name}-seed.iso"
            await self._announce(traces, seed)
            with _unless_taken(traces, seed):
                await _run(_write_file, seed, _seed(order, traces), traces.uuid)
            await self._pools.refresh(order.pool)
        return Deployed(order.name, traces.uuid, disk, seed)

    async def _announce(self, traces: Traces, path: Path) -> None:
        """Write down that *path* is about to be made; it must not be there."""
        if await _run(os.path.lexists, path):
            raise _taken(path)
        traces.files.append(str(path))
        await _run(self._notes.write, traces)

    async def _make_images(
        self, order: DeployOrder, template: str, traces: Traces, pool: RbdPool
    ) -> Deployed:
        if not order.untested:
            raise errors.InvalidValueError(_untested(order.pool))
        disk, seed = _images_of(order)
        noted = Noted(traces, self._notes, self._settle)
        clone = CloneOrder(template, disk, order.pool, order.disk_size, full=True)
        await self._disks.make(clone, noted)
        if order.user_data is None:
            return Deployed(order.name, traces.uuid, Path(pool.name, disk), None, pool)
        await self._images.write(_seed(order, traces), (order.pool, pool), seed, noted)
        await self._pools.refresh(order.pool)
        paths = Path(pool.name, disk), Path(pool.name, seed)
        return Deployed(order.name, traces.uuid, *paths, pool)

    async def clear(self, traces: Traces) -> None:
        """Delete what is ours of *traces*; can be called again.

        Raises :class:`errors.StorageError` and :class:`errors.LibvirtError`; what is deleted by
        then is not tried again.
        """
        if not traces.files and not traces.images:
            return
        if traces.files:
            await self._refuse_inactive(traces.pool)
            for path in await _run(traces.delete_files):
                log.warning("%s: %s is another's by now, and stays", traces.name, path)
        for image in reversed(list(traces.images)):
            await self._delete_image(traces, image)
        await self._pools.refresh(traces.pool)

    async def _refuse_inactive(self, pool: str) -> None:
        """What is not mounted has no files, and has them again when it is."""
        try:
            await self._pools.directory(pool)
        except errors.InvalidValueError:
            return  # another kind of pool by now
        except errors.LibvirtError as error:
            if error.code != _NO_POOL:
                raise

    async def _delete_image(self, traces: Traces, image: str) -> None:
        if traces.images[image] == OURS:
            traces.images[image] = LEAVING
            await _run(self._notes.write, traces)
            # Where nobody answers in time, it stays so: it may be deleted yet.
            try:
                await self._images.delete(traces.pool, image)
            except errors.DdfsError:
                traces.images[image] = OURS
                await _run(self._notes.write, traces)
                raise
        elif await self._images.has(traces.pool, image):
            # Nobody said whether it was made, or deleted: another host's may have the name by now.
            log.warning(
                "%s: pool %s has a volume %s, which may be left of it, or another host's; if it is "
                "nobody's, delete it with: virsh vol-delete %s %s",
                *(traces.name, traces.pool, image, image, traces.pool),
            )
        del traces.images[image]


class Noted:
    """Implements :class:`ddfs.clone.Undo` by the note of a deployment, which takes it back."""

    def __init__(
        self, traces: Traces, notes: Notes, settle: Callable[[str, str], Awaitable[None]]
    ) -> None:
        self.traces = traces
        self.notes = notes
        self._settle = settle

    async def announce(self, image: str) -> None:
        """Durable when it returns; :class:`errors.NameTakenError` for what is to be deleted yet."""
        await self._settle(self.traces.pool, image)
        self.traces.images[image] = ANNOUNCED
        await _run(self.notes.write, self.traces)

    async def made(self, image: str) -> None:
        """Durable when it returns."""
        self.traces.images[image] = OURS
        await _run(self.notes.write, self.traces)

    async def forget(self, image: str) -> None:
        """Durable when it returns."""
        del self.traces.images[image]
        await _run(self.notes.write, self.traces)

    async def keep(self) -> None:
        """A deployment has more to do."""

    async def take_back(self) -> None:
        """The deployment does."""


@contextlib.contextmanager
def _unless_taken(traces: Traces, path: Path) -> Iterator[None]:
    """Where somebody was faster, it is not ours to take back."""
    try:
        yield
    except errors.NameTakenError:
        traces.files.remove(str(path))
        raise _taken(path) from None


def obstacles_in(directory: Path, order: DeployOrder) -> list[str]:
    """Why no file can be made there; blocks."""
    paths = [directory / f"{order.name}.qcow2"]
    if order.user_data is not None:
        paths.append(directory / f"{order.name}-seed.iso")
    found = [f"{path} is there already" for path in paths if os.path.lexists(path)]
    try:
        room = os.statvfs(directory)
    except OSError as error:
        return [*found, f"{directory}: {error.strerror}"]
    # A file system that is read-only often says that it is full as well.
    if room.f_flag & os.ST_RDONLY:
        found.append(f"{directory} is read-only; pool {order.pool} needs to be written to")
    elif room.f_bavail * room.f_frsize < ROOM_FOR_OVERLAY_BYTES:
        found.append(f"{directory} has too little room for a new disk")
    return found


async def _run(function: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(function, *arguments, limiter=_limiter)


def _images_of(order: DeployOrder) -> tuple[str, str]:
    return order.name, f"{order.name}-seed"


def _seed(order: DeployOrder, traces: Traces) -> bytes:
    return seed_disk(traces.uuid, order.name, order.user_data or b"")


def _write_file(path: Path, data: bytes, mark: str) -> None:
    """Passwords are in it: only root and, by libvirt, QEMU's user may read it."""
    new = NewDisk(path.parent)
    try:
        new.write(data)
        new.mark(mark)
        new.publish(path, replace=False)
    finally:
        new.close()


def _untested(pool: str) -> str:
    return (
        f"pool {pool} is of type rbd, in which ddfs was never tested to deploy (only to clone); to "
        "do it all the same, add --untested"
    )


def _taken(path: Path) -> errors.NameTakenError:
    return errors.NameTakenError(f"{path} is there already; choose another name for the VM")
