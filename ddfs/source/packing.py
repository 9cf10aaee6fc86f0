"""Sources that are packed: what their names say, and what they start with inside."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Final, Protocol

import trio

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.metalink import names
from ddfs.model import HEAD_LENGTH, ByteRange, KiB, Manifest, MiB, Packing, PackingKind
from ddfs.source.head import Head, read_head, read_part
from ddfs.source.ports import Documents

# The start, the end and, of a zip, the directory and the file: more requests than this are
# no look at a packed file any more.
_MAX_PARTS: Final = 12

# What is asked for at once, so that a look does not become hundreds of requests. At an end
# little is wanted: an index, or a directory.
_PART_BYTES: Final = 512 * KiB
_END_BYTES: Final = 64 * KiB

# As much as a transport gives in one small range.
_MAX_PART: Final = 8 * MiB

# Unpacking a mebibyte takes some 50 ms: in a thread, one at a time.
_LOOKING: Final = trio.CapacityLimiter(1)


class PackedFacts(Protocol):
    """What a look at a packed image found."""

    @property
    def head(self) -> bytes:
        """The first bytes of what comes out."""

    @property
    def size(self) -> int | None:
        """How many there will be, if the packed file says so."""


class Look(Protocol):
    """Looks at a packed image; raises :class:`errors.ImageError`."""

    def __call__(
        self, packing: Packing, size: int, read_at: Callable[[int, int], bytes]
    ) -> PackedFacts:
        """The facts of a file of *size* bytes, from as few of them as will do."""
        ...


class _LackingError(Exception):
    """Bytes that are not here yet."""

    def __init__(self, wanted: ByteRange) -> None:
        super().__init__(wanted)
        self.wanted = wanted


def with_packing(manifest: Manifest, declaration: Declaration) -> Manifest:
    """*manifest* with how its file is packed, as its name claims.

    The claim is checked against the bytes when the head is read. Raises
    :class:`errors.RequestError` for what is declared and cannot be.
    """
    kind = PackingKind.of_name(manifest.name)
    if kind is None:
        if declaration.unpacked_checksum is not None:
            raise errors.RequestError(
                f"{names.shown(manifest.name)} is not called like a packed file, and "
                "unpacked_checksum is of what comes out of one; use checksum"
            )
        if declaration.size is not None:
            raise errors.RequestError(
                f"{names.shown(manifest.name)} is not called like a packed file, and size is of "
                "what comes out of one; leave it out"
            )
        return manifest
    if manifest.name.rpartition(".")[0].lower().endswith(".tar"):
        raise errors.RequestError(
            f"{names.shown(manifest.name)}: a tar archive is not unpacked; give the address of "
            "an image"
        )
    member = declaration.file if kind is PackingKind.ZIP else None
    if member == manifest.name:
        member = None
    packing = Packing(kind, member, declaration.size, declaration.unpacked_checksum)
    unverified = manifest.unverified_id
    if unverified is not None and (member is not None or packing.checksum is not None):
        # One unverified file with several contents in it: what is told apart by a hash over
        # all of it elsewhere is by a longer name here.
        unverified += hashlib.sha256(f"{member} {packing.checksum}".encode()).hexdigest()[:16]
    return dataclasses.replace(manifest, packing=packing, unverified_id=unverified)


async def read_packed_head(
    manifest: Manifest, documents: Documents, look: Look
) -> tuple[Head, Manifest]:
    """The head of what comes out, and *manifest* with its size where the packed file says it.

    The head is not verified: the bytes that it was made from need not lie under a hash.
    Raises what :func:`ddfs.source.head.read_head` raises, and :class:`errors.ImageError`.
    The caller sets the deadline.
    """
    packing, size = manifest.packing, manifest.size
    assert packing is not None
    assert size is not None
    first = await read_head(manifest, documents)
    parts = {0: first.data}

    def read_at(offset: int, length: int) -> bytes:
        return _read(parts, size, offset, length)

    for _ in range(_MAX_PARTS):
        try:
            facts = await trio.to_thread.run_sync(look, packing, size, read_at, limiter=_LOOKING)
        except _LackingError as lacking:
            wanted = _widened(lacking.wanted, size)
            parts[wanted.start] = await read_part(manifest, wanted, documents)
            continue
        _refuse_another_size(packing, facts.size)
        if packing.size is None:
            packing = dataclasses.replace(packing, size=facts.size)
        head = Head(facts.head[:HEAD_LENGTH], verified=False, failures=first.failures)
        return head, dataclasses.replace(manifest, packing=packing)
    raise errors.DocumentError(
        f"{names.shown(manifest.name)}: what is in it cannot be made out from a few parts"
    )


def _refuse_another_size(packing: Packing, found: int | None) -> None:
    """The index of an xz or zip file is of all of it; a zstd header is of its first frame."""
    if packing.size is None or found is None or packing.kind is PackingKind.ZSTD:
        return
    if packing.size != found:
        raise errors.ImageError(
            f"the image is refused: by its own word it unpacks to {found} bytes, and not to the "
            f"{packing.size} that were declared (--size)"
        )


def _read(parts: dict[int, bytes], size: int, offset: int, length: int) -> bytes:
    """From what is here; raises :class:`_LackingError` for what is not."""
    data = bytearray()
    end = min(size, offset + length)
    while (position := offset + len(data)) < end:
        part = max(
            (at for at, kept in parts.items() if at <= position < at + len(kept)), default=None
        )
        if part is None:
            raise _LackingError(ByteRange(position, end))
        data += parts[part][position - part : end - part]
    return bytes(data)


def _widened(wanted: ByteRange, size: int) -> ByteRange:
    """*wanted* with what is likely wanted next."""
    if wanted.end == size and len(wanted) < _END_BYTES:
        return ByteRange(max(0, size - _END_BYTES), size)
    end = min(size, max(wanted.end, wanted.start + _PART_BYTES))
    return ByteRange(wanted.start, min(end, wanted.start + _MAX_PART))
