"""A source to a manifest, for the commands that need no daemon."""

from __future__ import annotations

import dataclasses

from ddfs import source
from ddfs.declaration import Declaration
from ddfs.fetch.transport import Transport
from ddfs.model import Manifest


async def resolve_once(declaration: Declaration, location: str | None) -> Manifest:
    """The manifest of what is declared, over a transport of its own."""
    async with Transport() as transport:
        return await resolve(declaration, transport, location)


async def resolve(declaration: Declaration, transport: Transport, location: str | None) -> Manifest:
    """The manifest of what is declared, of the file itself: it is not unpacked."""
    manifest = await source.resolve(declaration, documents=transport, location=location)
    return dataclasses.replace(manifest, packing=None)
