"""What an examination makes of a file, its hashes and its pieces."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from ddfs.model import HashAlgorithm, Manifest, PieceMap
from ddfs.spool.examine import Findings, examine
from tests.spool.test_spool_spool import manifest_of

CONTENT = bytes(range(256)) * 64
PIECE = 4096


async def found(path: Path, manifest: Manifest, pieces: PieceMap | None) -> Findings:
    def look() -> Findings:
        return examine(path, manifest, pieces, lambda _: None, from_disk=False)

    return await trio.to_thread.run_sync(look)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(CONTENT)
    return made


def rotten(path: Path) -> None:
    path.write_bytes(CONTENT[:PIECE] + b"rot" + CONTENT[PIECE + 3 :])


async def test_pieces_name_the_damage(path: Path) -> None:
    manifest = manifest_of(CONTENT, [], piece_length=PIECE)
    assert (await found(path, manifest, manifest.pieces)).damaged == ()
    rotten(path)
    assert (await found(path, manifest, manifest.pieces)).damaged == (1,)
    alone = replace(manifest, digests=())
    assert (await found(path, alone, manifest.pieces)).damaged == (1,)
    nothing_told = await found(path, manifest, None)
    assert (nothing_told.can_tell, len(nothing_told.damaged)) == (False, 1)
    # Nothing that pieces cover: the file became longer.
    path.write_bytes(CONTENT + b"x")
    longer = await found(path, manifest, manifest.pieces)
    assert (longer.can_tell, len(longer.damaged)) == (False, 4)


@pytest.mark.parametrize("algorithm", [HashAlgorithm.SHA256, HashAlgorithm.SHA1])
async def test_pieces_that_deny_the_hash_of_the_whole_file_lie(
    path: Path, algorithm: HashAlgorithm
) -> None:
    manifest = manifest_of(CONTENT, [], piece_length=PIECE)
    lies = PieceMap(algorithm, PIECE, bytes(4 * algorithm.digest_size))
    told = await found(path, manifest, lies)
    assert (told.damaged, told.can_tell) == ((), True)
    # From then on there are true ones, of our own.
    right = b"".join(
        hashlib.sha256(CONTENT[start : start + PIECE]).digest()
        for start in range(0, len(CONTENT), PIECE)
    )
    is_ours = algorithm is HashAlgorithm.SHA256
    assert told.fingerprint == (PieceMap(algorithm, PIECE, right) if is_ours else None)
