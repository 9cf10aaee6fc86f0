"""Room for a fetch: reserved, and made where there is none by deleting what nobody needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ddfs import errors
from ddfs.spool.ports import Storage

# ``make_room(primary, missing, content_id)`` frees that many bytes or more on a primary
# storage, never those of *content_id*; it says whether it freed any.
MakeRoom = Callable[[str, int, str], Awaitable[bool]]

# What one fetch has freed, another may reserve first.
_TRIES: Final = 5


async def reserve(
    storage: Storage, content_id: str, length: int, make_room: MakeRoom | None
) -> None:
    """Set *length* bytes aside, after making room if there is not enough.

    Raises :class:`errors.StorageFullError`, as of before anything was freed, when what may
    go is not enough.
    """
    first: errors.StorageFullError | None = None
    for _ in range(_TRIES):
        try:
            await trio.to_thread.run_sync(storage.reserve, content_id, length)
        except errors.StorageFullError as error:
            first = first or error
            if make_room is None or not error.missing:
                raise
            if not await make_room(storage.name, error.missing, content_id):
                raise first from None
        else:
            return
    assert first is not None
    raise first
