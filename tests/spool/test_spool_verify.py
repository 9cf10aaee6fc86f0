"""Hashing of whole files, which takes minutes, ends when nobody waits for it any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from ddfs.model import Digest, Grid, HashAlgorithm, Manifest, MiB, Mirror, PieceMap
from ddfs.spool import pin
from ddfs.spool.partial import PartialFile
from ddfs.spool.verify import holds_all_digests

# Some seconds' work, of which a few milliseconds are done.
SIZE = 4096 * MiB
DIGEST = Digest(HashAlgorithm.SHA256, "0" * 64)


def manifest(**known: object) -> Manifest:
    given = {"digests": (DIGEST,), "pieces": None, "mirrors": (Mirror("http://a/x"),), **known}
    return Manifest("x", SIZE, **given)  # type: ignore[arg-type]


def by_digests(path: Path) -> object:
    return holds_all_digests(path, manifest())


def by_pieces(path: Path) -> object:
    zeros = HashAlgorithm.SHA256.hasher()
    zeros.update(bytes(MiB))
    count = Grid(SIZE, MiB).count
    pieces = PieceMap(HashAlgorithm.SHA256, MiB, zeros.digest() * count)
    return holds_all_digests(path, manifest(digests=(), pieces=pieces))


def pinning(path: Path) -> object:
    partial = PartialFile.open(path, path.with_name("journal"), manifest())
    try:
        return pin._sha256(partial)
    finally:
        partial.close()


@pytest.mark.parametrize("hashing", [by_digests, by_pieces, pinning])
async def test_a_cancelled_hashing_ends(tmp_path: Path, hashing: Callable[[Path], object]) -> None:
    path, limiter = tmp_path / "x", trio.CapacityLimiter(1)
    path.touch()
    with path.open("r+b") as file:
        file.truncate(SIZE)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                while not limiter.borrowed_tokens:
                    await trio.sleep(0.01)
                scope.cancel()

            nursery.start_soon(cancel)
            await trio.to_thread.run_sync(hashing, path, limiter=limiter)
    assert scope.cancelled_caught
