"""Images in Ceph: made by libvirt, so that nobody else's is ever written to, filled by qemu-img.

Hosts share a pool of Ceph, and an image says nothing of who made it. So it is written down
before one is made, and again when it is there and ours: what a daemon that dies leaves is
deleted by the next one, and never anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import trio

from ddfs import errors
from ddfs.image import rbd
from ddfs.model import ImageFormat, PublishedFile, RbdPool

T = TypeVar("T")

SECTOR: Final = 512

# Copies of whole images.
_copying = trio.CapacityLimiter(2)

# Images made: nobody can break that off, so that it must not wait for a copy.
_making = trio.CapacityLimiter(2)

# Questions, and deletions: a Ceph that does not answer holds libvirt for half a minute.
_asking = trio.CapacityLimiter(2)


class RbdPools(Protocol):
    """libvirt's pools of type rbd. All block, and raise :class:`errors.LibvirtError`."""

    def find(self, pool: str) -> RbdPool | None:
        """Where the images of an active pool are; None for a pool of another type."""

    def free_bytes(self, pool: str) -> int:
        """The room in it."""

    def has(self, pool: str, image: str) -> bool:
        """Whether an image has that name."""

    def create(self, pool: str, image: str, size: int) -> None:
        """Make an empty image; :class:`errors.NameTakenError`."""

    def delete(self, pool: str, image: str) -> None:
        """Delete an image, if it is there."""


class Undo(Protocol):
    """Writes down what would have to be taken back of a disk in the making.

    All but the last raise :class:`errors.StorageError`.
    """

    async def announce(self, image: str) -> None:
        """It is about to be made."""

    async def made(self, image: str) -> None:
        """It is there, and ours."""

    async def forget(self, image: str) -> None:
        """It was not made: another one has the name."""

    async def keep(self) -> None:
        """All of it is complete, and stays."""

    async def take_back(self) -> None:
        """Delete what is ours, now or later. Not cancellable, and never fails."""


class Images:
    """Makes them in those of this host's libvirt pools that are of type rbd."""

    def __init__(self, pools: RbdPools) -> None:
        self._pools = pools

    async def find(self, pool: str) -> RbdPool | None:
        """Where the images of an active pool are; None for a pool of another type.

        Raises :class:`errors.LibvirtError`, and :class:`errors.InvalidValueError` for a pool
        whose description cannot be used.
        """
        return await _ask(self._pools.find, pool)

    async def free_bytes(self, pool: str) -> int:
        """The room in *pool*; :class:`errors.LibvirtError`."""
        return await _ask(self._pools.free_bytes, pool)

    async def has(self, pool: str, image: str) -> bool:
        """Whether *pool* has it; :class:`errors.LibvirtError`."""
        return await _ask(self._pools.has, pool, image)

    async def delete(self, pool: str, image: str) -> None:
        """Delete it, if it is there; :class:`errors.LibvirtError`.

        Cancelled, it leaves at once, and the image is deleted or not.
        """
        await _ask(self._pools.delete, pool, image)

    async def copy(
        self,
        source: PublishedFile,
        image_format: ImageFormat,
        place: tuple[str, RbdPool],
        image: str,
        size: int,
        undo: Undo,
    ) -> None:
        """Make *image* of *size* bytes, and copy the disk in *source* to its start.

        *place* is a pool: its name at libvirt, and what :meth:`find` says of it. Raises
        :class:`errors.NameTakenError`, :class:`errors.StorageFullError`,
        :class:`errors.StorageError` and :class:`errors.LibvirtError`. After an error or a
        cancellation it may be there in part, and *undo* knows.
        """

        def fill() -> None:
            check = trio.from_thread.check_cancelled
            rbd.copy(source, image_format, place[1], image, check)

        await self._make(place[0], image, size, fill, undo)

    async def write(self, data: bytes, place: tuple[str, RbdPool], image: str, undo: Undo) -> None:
        """As :meth:`copy`, with *data* in it."""

        def fill() -> None:
            rbd.write(data, place[1], image, trio.from_thread.check_cancelled)

        size = -(-len(data) // SECTOR) * SECTOR
        await self._make(place[0], image, size, fill, undo)

    async def _make(
        self, pool: str, image: str, size: int, fill: Callable[[], None], undo: Undo
    ) -> None:
        await undo.announce(image)
        with trio.CancelScope(shield=True):
            try:
                await _run(self._pools.create, pool, image, size, limiter=_making)
            except errors.NameTakenError:
                await undo.forget(image)
                raise
            # After any other error it may be there: libvirt may have gone before it could say so.
            await undo.made(image)
        await _run(fill, limiter=_copying)


async def _run(function: Callable[..., T], *arguments: object, limiter: trio.CapacityLimiter) -> T:
    return await trio.to_thread.run_sync(function, *arguments, limiter=limiter)


async def _ask(function: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(
        function, *arguments, limiter=_asking, abandon_on_cancel=True
    )
