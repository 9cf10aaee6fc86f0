"""A file that stands in primary storage under a content's name already: is it that content?

What nothing vouches for before it was fetched (an image that comes out of a packed file, or one
that nothing verifies) has no hash then. Where hosts share the storage, the one that has
published it has said what it came to; else only this host's own fetch can tell.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from ddfs import errors
from ddfs.model import Digest, HashAlgorithm, Manifest
from ddfs.spool.ports import Ledger, Storage
from ddfs.spool.verify import holds_all_digests

# Whole files are hashed and inspected; two at once saturate a disk.
FILES = trio.CapacityLimiter(2)


async def find_standing(
    storage: Storage,
    name: str,
    manifest: Manifest,
    ledger: Ledger,
    ledger_limiter: trio.CapacityLimiter,
) -> Path | None:
    """The file *name* on *storage*, which is what *manifest* publishes.

    None where there is none, and where nobody can say yet what it has to be. Raises
    :class:`errors.NameTakenError` for other bytes, and :class:`errors.StorageError`.
    """
    path = storage.path / name
    if await trio.to_thread.run_sync(storage.identify, path) is None:
        return None
    if not _is_told(manifest):
        return await _learn(storage, path, manifest, ledger, ledger_limiter)
    if not await _holds(path, manifest):
        raise errors.NameTakenError(
            f"{path}: a file with other bytes has this name; it is not touched. "
            "Move it away, then try again"
        )
    return path


def _is_told(manifest: Manifest) -> bool:
    """Whether something says what the published bytes are."""
    published = manifest.published
    return bool(published.digests) or published.pieces is not None


async def _holds(path: Path, manifest: Manifest) -> bool:
    check = partial(holds_all_digests, path, manifest.published)
    return await trio.to_thread.run_sync(check, limiter=FILES)


async def _learn(
    storage: Storage,
    path: Path,
    manifest: Manifest,
    ledger: Ledger,
    ledger_limiter: trio.CapacityLimiter,
) -> Path | None:
    """*path*, if it is what another host says of it, which is then written down here too."""
    content_id = manifest.content_id
    said = await trio.to_thread.run_sync(storage.said_of, content_id)
    if said is None:
        return None
    size, digest = said
    if manifest.packing is None:
        known = replace(manifest, digests=(digest,))
        record = partial(ledger.pin, content_id, digest)
    else:
        packing = replace(manifest.packing, size=size, sha256=digest.hexdigest)
        known = replace(manifest, packing=packing)
        record = partial(ledger.record_unpacked, content_id, size, digest.hexdigest)
    if not await _holds(path, known):
        return None
    await trio.to_thread.run_sync(record, limiter=ledger_limiter)
    return path


async def say(storage: Storage, content_id: str, size: int, sha256: str) -> None:
    """Tell the hosts on *storage* what *content_id* came to, before it has its name."""
    digest = Digest(HashAlgorithm.SHA256, sha256)
    await trio.to_thread.run_sync(storage.say, content_id, size, digest)
