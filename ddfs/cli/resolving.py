"""A source to a manifest, for the commands that need no daemon."""

from __future__ import annotations

from ddfs import source
from ddfs.fetch.transport import Transport
from ddfs.model import Digest, Manifest


async def resolve_once(
    address: str, checksum: str | None, file: str | None, location: str | None
) -> Manifest:
    """The manifest of *address*, over a transport of its own."""
    async with Transport() as transport:
        return await resolve(transport, address, checksum, file, location)


async def resolve(
    transport: Transport,
    address: str,
    checksum: str | None,
    file: str | None,
    location: str | None,
) -> Manifest:
    """The manifest of *address*, with the arguments as people write them."""
    digest = None if checksum is None else Digest.parse(checksum)
    return await source.resolve(
        address, checksum=digest, documents=transport, location=location, file=file
    )
