"""The first fetch of what nothing verifies: it says what the content is from then on.

Such a content is named by its address and by what the server said of it when it was
registered (:func:`ddfs.model.unverified_id`). If the server says the same before the first
request and after the last, the bytes are of one state of the file, and their SHA-256 is
what every later fetch, and every other name of this content, has to have.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ddfs import errors
from ddfs.fetch.access import Grants
from ddfs.fetch.transport import Transport
from ddfs.model import Digest, HashAlgorithm, Manifest, MiB, unverified_id
from ddfs.spool.partial import PartialFile, storage_errors

_BLOCK = 4 * MiB

# Two saturate a disk.
_hashing = trio.CapacityLimiter(2)


def start_over(path: Path, journal: Path) -> None:
    """Delete what an interrupted first fetch left. Blocks; raises :class:`errors.StorageError`.

    Within one fetch a mirror that changes is noticed. Over several it is not: a server that
    shows A, B and A again could have had B's pieces journaled by one that was killed.
    """
    with storage_errors(path):
        journal.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


async def refuse_change(manifest: Manifest, transport: Transport, grants: Grants | None) -> None:
    """Raises :class:`errors.ChecksumError` if the source is not what was registered.

    Only for an unpinned *manifest*. Raises :class:`errors.MirrorError` where the server
    cannot be asked.
    """
    assert manifest.unverified_id is not None
    url = manifest.mirrors[0].url
    look = await transport.look_at(url, grants)
    size = -1 if look.size is None else look.size
    if not manifest.unverified_id.startswith(unverified_id(url, size, look.validator)):
        raise errors.ChecksumError(
            f"{manifest.name}: {url} has changed since it was registered, and nothing says what "
            "it was: register what is there now, under a new name or as a new version"
        )


@asynccontextmanager
async def watched(
    manifest: Manifest, partial: PartialFile, transport: Transport, grants: Grants | None
) -> AsyncIterator[None]:
    """The transfer of *manifest* into *partial*, of an unchanged source if it is unpinned.

    Where the transfer fails and the source has changed, nothing of what came counts.
    """
    if not manifest.is_unpinned:
        yield
        return
    await refuse_change(manifest, transport, grants)
    try:
        yield
    except errors.SourceError:
        with contextlib.suppress(errors.MirrorError):
            await _forget_if_changed(manifest, partial, transport, grants)
        raise


async def _forget_if_changed(
    manifest: Manifest, partial: PartialFile, transport: Transport, grants: Grants | None
) -> None:
    try:
        await refuse_change(manifest, transport, grants)
    except errors.ChecksumError:
        partial.discard_journal()
        raise


async def pin(
    manifest: Manifest, partial: PartialFile, transport: Transport, grants: Grants | None
) -> Digest:
    """The SHA-256 of the complete *partial*, if its source did not change meanwhile.

    After :class:`errors.ChecksumError` nothing in it counts: the next fetch starts anew.
    """
    await _forget_if_changed(manifest, partial, transport, grants)
    return await trio.to_thread.run_sync(_sha256, partial, limiter=_hashing)


def _sha256(partial: PartialFile) -> Digest:
    hasher = HashAlgorithm.SHA256.hasher()
    offset = 0
    with storage_errors(partial.path):
        while block := os.pread(partial.fd, _BLOCK, offset):
            trio.from_thread.check_cancelled()
            hasher.update(block)
            offset += len(block)
    return Digest(HashAlgorithm.SHA256, hasher.hexdigest())
