"""A source to a manifest, for the commands that need no daemon."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

from ddfs import errors, source
from ddfs.config import Settings
from ddfs.declaration import Declaration
from ddfs.fetch.access import Grants
from ddfs.fetch.certificates import directory_of
from ddfs.fetch.headstart import Headstart
from ddfs.fetch.transport import Transport
from ddfs.model import Manifest


def transport_of(settings: Settings, headstart: Headstart | None = None) -> Transport:
    """A transport of one's own, with what the settings say about whom to trust."""
    return Transport(
        headstart,
        ca_directory=directory_of(settings.state_dir),
        allow_networks=settings.network.allow_networks,
    )


async def resolve_once(declaration: Declaration, settings: Settings) -> Manifest:
    """The manifest of what is declared, over a transport of its own."""
    async with transport_of(settings) as transport:
        manifest, _ = await resolve(transport, declaration, settings)
        return manifest


def judge_of(
    manifest: Manifest, declaration: Declaration, settings: Settings
) -> Callable[[Path], Awaitable[None]] | None:
    """What judges the complete file by the signature of *manifest*; None where it has none."""
    signature = manifest.signature
    if signature is None:
        return None
    keyring = declaration.keys(settings.network.keyring)

    async def judge(image: Path) -> None:
        try:
            await source.judge_image(image, signature, keyring)
        except errors.SignatureError as error:
            raise errors.SignatureError(f"{manifest.name}: {error}") from None

    return judge


async def resolve(
    transport: Transport, declaration: Declaration, settings: Settings
) -> tuple[Manifest, Grants]:
    """The manifest of what is declared, and with what its mirrors are to be asked.

    It is that of the file itself, which is not unpacked.
    """
    inquiry = await transport.inquiry(declaration)
    network = settings.network
    found = await source.resolve(
        declaration, documents=inquiry, location=network.location, keyring=network.keyring
    )
    manifest = dataclasses.replace(inquiry.attributed(found), packing=None)
    return manifest, inquiry.grants
