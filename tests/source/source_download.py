"""From a declaration to a file, with the real engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddfs import source
from ddfs.declaration import Declaration
from ddfs.fetch.events import FetchEvent
from ddfs.fetch.transfer import TransferReport
from ddfs.fetch.transport import Transport
from ddfs.metalink import write
from ddfs.model import Digest, HashAlgorithm, KiB, Manifest, Mirror, PieceMap
from ddfs.spool.download import download
from tests.mirrorlab.mirrorlab import MirrorLab


@dataclass(frozen=True)
class Downloaded:
    manifest: Manifest
    report: TransferReport


async def fetched(
    address: str,
    destination: Path,
    observer: Callable[[FetchEvent], None] = lambda event: None,
    **declared: Any,
) -> Downloaded:
    """What ``ddfs fetch`` does."""
    declaration = Declaration.from_plain({"source": address, **declared})
    async with Transport() as transport:
        inquiry = await transport.inquiry(declaration)
        found = await source.resolve(declaration, documents=inquiry, location=None)
        manifest = inquiry.attributed(found)
        report = await download(
            manifest,
            destination,
            transport=transport,
            observer=observer,
            started=lambda transfer: None,
            grants=inquiry.grants,
        )
    return Downloaded(manifest, report)


def described(content: bytes, *urls: str, piece_length: int | None = 256 * KiB) -> Manifest:
    pieces = None
    if piece_length is not None:
        parts = [content[i : i + piece_length] for i in range(0, len(content), piece_length)]
        hashes = b"".join(hashlib.sha1(part).digest() for part in parts)
        pieces = PieceMap(HashAlgorithm.SHA1, piece_length, hashes)
    digests = tuple(
        Digest(algorithm, hashlib.new(name, content).hexdigest())
        for algorithm, name in ((HashAlgorithm.SHA256, "sha256"), (HashAlgorithm.MD5, "md5"))
    )
    mirrors = tuple(Mirror(url, n) for n, url in enumerate(urls, start=1))
    return Manifest("a.img", len(content), digests, pieces, mirrors)


def published(lab: MirrorLab, document: str | Manifest) -> str:
    """The address of a metalink."""
    text = write.make(document) if isinstance(document, Manifest) else document
    return lab.mirror(text.encode(), name="a.img.meta4")
