"""Is this whole file what a manifest says? For files that did not come through a fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio

from ddfs.model import Manifest, MiB
from ddfs.spool.partial import storage_errors

_BLOCK: Final = MiB


def holds_all_digests(path: Path, manifest: Manifest) -> bool:
    """Whether the file has the size and every digest of *manifest*; blocks, in a thread.

    With no whole-file digest, every piece hash has to hold. Ends at the next mebibyte (without
    digests: piece) when the caller is cancelled. Raises :class:`ddfs.errors.StorageError` when
    the file cannot be read.
    """
    with storage_errors(path):
        if path.stat().st_size != manifest.size:
            return False
        return _digests_hold(path, manifest) if manifest.digests else _pieces_hold(path, manifest)


def _digests_hold(path: Path, manifest: Manifest) -> bool:
    hashers = [digest.algorithm.hasher() for digest in manifest.digests]
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            trio.from_thread.check_cancelled()
            for hasher in hashers:
                hasher.update(block)
    found = [hasher.hexdigest() for hasher in hashers]
    return found == [digest.hexdigest for digest in manifest.digests]


def _pieces_hold(path: Path, manifest: Manifest) -> bool:
    pieces = manifest.pieces
    if pieces is None:
        return False
    with path.open("rb") as file:
        for expected in pieces:
            trio.from_thread.check_cancelled()
            hasher = pieces.algorithm.hasher()
            hasher.update(file.read(pieces.piece_length))
            if hasher.digest() != expected:
                return False
    return True
