"""A published content onto another primary storage of this host, without any mirror.

By reflink where both are on one file system that can, else by copying what is data and leaving
holes holes. Never by a hard link: two storages' files
would be one inode, and deleting, protecting and labelling one would be doing it to the other.
The copy is hashed before it gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ddfs import errors, filecopy
from ddfs.model import Manifest, PublishedFile
from ddfs.spool.fetching import CLAIM_SECONDS, Order, Surroundings
from ddfs.spool.partial import storage_errors
from ddfs.spool.ports import Storage
from ddfs.spool.publishing import publish
from ddfs.spool.room import adopt, reserve
from ddfs.spool.standing import find_standing
from ddfs.spool.verify import holds_all_digests

# Until what others may go on with is said to them; it expires anyway.
_DISCLAIM_SECONDS: Final = 2.0

# One copy saturates a disk.
_limiter = trio.CapacityLimiter(1)


async def copy_content(
    order: Order, source: PublishedFile, target: Storage, around: Surroundings
) -> PublishedFile:
    """Publish on *target* what stands as *source* on another storage.

    Raises :class:`errors.StorageFullError`, :class:`errors.NameTakenError`, and
    :class:`errors.ChecksumError` for a source that is not what was published; then, or
    cancelled, nothing of the copy stays. The caller writes the reference down.
    """
    content_id = order.content_id
    manifest = await trio.to_thread.run_sync(
        around.ledger.manifest, content_id, limiter=around.ledger_limiter
    )
    try:
        while not await trio.to_thread.run_sync(target.claim, content_id):
            # Another host brings it there; what it publishes is seen at once.
            if (adopted := await _adopt(order, manifest, target, around)) is not None:
                return adopted
            await trio.sleep(CLAIM_SECONDS)
        if (adopted := await _adopt(order, manifest, target, around)) is not None:
            return adopted
        await reserve(target, content_id, source.size, around.make_room)
        return await _copy(order, manifest, source, target)
    finally:
        target.release(content_id)
        with trio.move_on_after(_DISCLAIM_SECONDS, shield=True):
            await trio.to_thread.run_sync(target.disclaim, content_id)


async def _copy(
    order: Order, manifest: Manifest, source: PublishedFile, target: Storage
) -> PublishedFile:
    path = target.partial_path(order.content_id)
    scope = trio.CancelScope()
    try:
        with scope:
            # The journal of a fetch of before must not vouch for what a crash leaves here.
            await trio.to_thread.run_sync(target.discard, order.content_id)
            volume_bytes = source.size if source.is_volume else None
            copy = partial(copy_file, check=_check_cancelled, volume_bytes=volume_bytes)
            await trio.to_thread.run_sync(copy, Path(source.path), path, limiter=_limiter)
            await _verify(path, manifest)
            return await publish(target, path, order.published_name)
        raise errors.CancelledFetchError("the copy was cancelled")
    except BaseException:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(target.discard, order.content_id)
        raise


def _check_cancelled() -> None:
    trio.from_thread.check_cancelled()


async def _adopt(
    order: Order, manifest: Manifest, target: Storage, around: Surroundings
) -> PublishedFile | None:
    name = order.published_name
    limiter = around.ledger_limiter
    if await find_standing(target, name, manifest, around.ledger, limiter) is None:
        return None
    return await adopt(target, order.content_id, name, around.make_room)


async def _verify(path: Path, manifest: Manifest) -> None:
    holds = partial(holds_all_digests, path, manifest.published)
    if not await trio.to_thread.run_sync(holds, limiter=_limiter):
        raise errors.ChecksumError(
            f"{manifest.name}: its file in primary storage is not what was published; "
            "remove it with --purge, then fetch it again"
        )


def copy_file(
    source: Path,
    target: Path,
    check: Callable[[], None] = lambda: None,
    *,
    volume_bytes: int | None = None,
) -> bool:
    """Make *target*, which is replaced, a copy of *source*; whether it shares its blocks.

    Of a device *volume_bytes* are copied, and not what it has behind them. *check* is called
    often and may raise to end it. Raises :class:`errors.StorageFullError` and
    :class:`errors.StorageError`.
    """
    with storage_errors(target):
        out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with storage_errors(source):
            follow = os.O_NOFOLLOW if volume_bytes is None else 0
            into = os.open(source, os.O_RDONLY | follow | os.O_CLOEXEC)
        try:
            with storage_errors(target):
                if volume_bytes is not None:
                    filecopy.copy_volume(into, out, volume_bytes, check)
                    return False
                if filecopy.reflink(into, out):
                    return True
                filecopy.copy_data(into, out, check)
                return False
        finally:
            os.close(into)
    finally:
        os.close(out)
