"""Where the document of a source is: the metalink at an address, or in a file of this host."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit

import trio

from ddfs import errors
from ddfs.metalink import limits, read
from ddfs.model import ByteRange, Manifest
from ddfs.source.localfile import read_start
from ddfs.source.ports import Documents, FetchedDocument

METALINK_SUFFIXES: Final = frozenset({".meta4", ".metalink"})

# Addresses that end so are not asked what they are.
IMAGE_SUFFIXES: Final = frozenset(
    {
        *(".qcow2", ".qcow", ".img", ".raw", ".iso", ".vmdk", ".vhd", ".vhdx", ".vdi", ".bin"),
        *(".gz", ".xz", ".bz2", ".zst", ".zip", ".tar", ".tgz"),
    }
)

_METALINK_TYPES: Final = frozenset({"application/metalink4+xml", "application/metalink+xml"})

# A document may warn about each of 10,000 files; a person reads the first few.
_MAX_WARNINGS_KEPT: Final = 20

# Parsing 32 MiB takes 1.5 s and 80 MiB: in threads, few at once.
_PARSING: Final = trio.CapacityLimiter(1)
_READING: Final = trio.CapacityLimiter(1)


async def metalink_at(url: str, documents: Documents) -> FetchedDocument | None:
    """The metalink at *url*, or None for an image, of which at most 4 KiB are read."""
    suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    if suffix in METALINK_SUFFIXES:
        return await documents.read_document(url, max_bytes=limits.MAX_DOCUMENT_BYTES)
    if suffix in IMAGE_SUFFIXES:
        return None
    try:
        start = await documents.read_range(url, ByteRange(0, read.SNIFF_LENGTH), size=None)
    except errors.MirrorError:
        # Smaller than that, or generated when asked for: such servers know no ranges.
        return await _small_document_at(url, documents)
    if not read.looks_like_metalink(start):
        return None
    return await documents.read_document(url, max_bytes=limits.MAX_DOCUMENT_BYTES)


async def _small_document_at(url: str, documents: Documents) -> FetchedDocument | None:
    try:
        found = await documents.read_document(url, max_bytes=limits.MAX_DOCUMENT_BYTES)
    except errors.DocumentError:
        # Too large for a metalink.
        return None
    kind = (found.content_type or "").partition(";")[0].strip().lower()
    if kind in _METALINK_TYPES or read.looks_like_metalink(found.data):
        return found
    return None


async def parsed_metalink(
    address: str, data: bytes, base_url: str | None, location: str | None, file: str | None
) -> Manifest:
    """What the metalink *data* says of *file*; errors name *address*."""
    parse = functools.partial(read.parse, data, base_url=base_url, location=location)
    try:
        document = await trio.to_thread.run_sync(parse, limiter=_PARSING)
        manifest = read.select(document, file)
    except errors.DocumentError as error:
        raise errors.DocumentError(f"{address}: {error}") from None
    kept = document.warnings[:_MAX_WARNINGS_KEPT]
    return dataclasses.replace(manifest, notes=manifest.notes + kept)


async def read_local_metalink(path: str) -> bytes:
    """The metalink at *path* of this host; :class:`errors.RequestError` if it cannot be read."""
    # One byte more than parse() takes, so that it sees what is too much.
    length = limits.MAX_DOCUMENT_BYTES + 1
    return await trio.to_thread.run_sync(read_start, path, length, limiter=_READING)
