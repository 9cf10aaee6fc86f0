"""What every fetch of a host shares, and a fetch that nobody watches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from ddfs.fetch.access import Grants
from ddfs.fetch.events import FetchEvent
from ddfs.fetch.target import Target
from ddfs.fetch.transfer import Transfer
from ddfs.fetch.transport import Transport
from ddfs.model import Manifest
from ddfs.spool.ports import Heads, Inspector, Judge, Ledger, Storage, Unpack
from ddfs.spool.room import MakeRoom


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every fetch of a host shares."""

    storage: Storage
    ledger: Ledger
    inspector: Inspector
    heads: Heads
    transport: Transport
    location: str | None
    ledger_limiter: trio.CapacityLimiter
    # None: nothing is ever deleted for a fetch.
    make_room: MakeRoom | None = None
    # None: packed images are not fetched.
    unpack: Unpack | None = None
    # With what the origins of a content (its id) are asked; None: with nothing.
    grants: Callable[[str], Awaitable[Grants]] | None = None
    # None: nothing has to be signed.
    judge: Judge | None = None

    async def grants_of(self, content_id: str) -> Grants | None:
        """With what the origins of a content are asked."""
        return await self.grants(content_id) if self.grants is not None else None

    async def fetch(self, manifest: Manifest, target: Target) -> None:
        """Fetch *manifest* into *target*; raises what :meth:`Transfer.run` raises."""
        grants = await self.grants_of(manifest.content_id)
        transfer = Transfer(
            manifest,
            target,
            self.transport,
            observer=_ignore,
            location=self.location,
            grants=grants,
        )
        await transfer.run()


def _ignore(_event: FetchEvent) -> None:
    """Nobody watches the single pieces of a repair."""
