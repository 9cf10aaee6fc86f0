"""Room for a fetch: reserved, and made where there is none by deleting what nobody needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import trio

from ddfs import errors
from ddfs.model import PublishedFile
from ddfs.spool.ports import Storage

T = TypeVar("T")

# ``make_room(primary, missing, content_id)`` frees that many bytes or more on a primary
# storage, never those of *content_id*; it says whether it freed any.
MakeRoom = Callable[[str, int, str], Awaitable[bool]]

# What one fetch has freed, another may reserve first.
_TRIES: Final = 5


async def reserve(
    storage: Storage, content_id: str, length: int, make_room: MakeRoom | None
) -> None:
    """Set *length* bytes aside, after making room if there is not enough; as :func:`with_room`."""
    await with_room(
        partial(storage.reserve, content_id, length), storage.name, content_id, make_room
    )


async def adopt(
    storage: Storage, content_id: str, name: str, make_room: MakeRoom | None
) -> PublishedFile:
    """Use the file *name* as published; it counts against the quota. As :func:`with_room`."""
    return await with_room(partial(storage.adopt, name), storage.name, content_id, make_room)


async def with_room(
    attempt: Callable[[], T], primary: str, content_id: str, make_room: MakeRoom | None
) -> T:
    """What *attempt*, in a thread, returns; room for it is made on *primary* where it has none.

    Raises :class:`errors.StorageFullError`, as of before anything was freed, when what may
    go is not enough.
    """
    first: errors.StorageFullError | None = None
    for _ in range(_TRIES):
        try:
            return await trio.to_thread.run_sync(attempt)
        except errors.StorageFullError as error:
            first = first or error
            if make_room is None or not error.missing:
                raise
            if not await make_room(primary, error.missing, content_id):
                raise first from None
    assert first is not None
    raise first
