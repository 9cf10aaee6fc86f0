"""From a packed file that is complete and verified to the image that is in it.

The image grows in a file of its own beside the packed one, which stays until the image is
published: a crash costs the unpacking and no byte of the network. What came out is written
down before it has its name, so that it can be verified from then on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.model import HEAD_LENGTH, Manifest, Packing
from ddfs.spool.partial import PartialFile, storage_errors
from ddfs.spool.ports import Unpack, Unpacked
from ddfs.spool.room import reserve
from ddfs.spool.standing import say
from ddfs.spool.surroundings import Surroundings

# One saturates a core, and holds its decoder's window.
_LIMITER: Final = trio.CapacityLimiter(2)


def room_for(manifest: Manifest) -> int:
    """What a fetch takes at most, as far as it is known before: packed and unpacked."""
    if manifest.size is None:
        raise ValueError("no room before the size is known")
    inside = manifest.published.size if manifest.packing is not None else None
    return manifest.size + (inside or 0)


async def unpack(manifest: Manifest, partial: PartialFile, around: Surroundings) -> Path:
    """The unpacked file, as *manifest* has it; its size, hash and head are written down.

    Raises :class:`errors.ImageError`, :class:`errors.ChecksumError`,
    :class:`errors.StorageError` and :class:`errors.StorageFullError`. After a failure, and
    after a cancellation (at the next mebibyte), nothing is left of it.
    """
    packing, content_id = manifest.packing, manifest.content_id
    assert packing is not None
    storage, run = around.storage, around.unpack
    if run is None:
        raise errors.ImageError(f"{manifest.name}: packed images are not unpacked here")
    packed_size = manifest.size or 0
    path = storage.unpacked_path(content_id)

    def need_room(length: int) -> None:
        trio.from_thread.run(reserve, storage, content_id, packed_size + length, around.make_room)

    def work() -> tuple[Unpacked, bytes]:
        with storage_errors(path):
            return _unpack(partial.fd, path, packing, run, need_room)

    unpacked, head = await trio.to_thread.run_sync(work, limiter=_LIMITER)
    await trio.to_thread.run_sync(
        around.ledger.record_unpacked,
        content_id,
        unpacked.size,
        unpacked.sha256,
        limiter=around.ledger_limiter,
    )
    await say(storage, content_id, unpacked.size, unpacked.sha256)
    await trio.to_thread.run_sync(around.heads.put, content_id, head)
    return path


def _unpack(
    packed_fd: int, path: Path, packing: Packing, run: Unpack, need_room: Callable[[int], None]
) -> tuple[Unpacked, bytes]:
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        unpacked = run(
            packed_fd, fd, packing, need_room=need_room, check=trio.from_thread.check_cancelled
        )
        return unpacked, os.pread(fd, HEAD_LENGTH, 0)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
