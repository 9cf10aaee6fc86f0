"""What a repair fetches into: a file that has nothing but the damaged pieces."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from ddfs.fetch.transfer import Transfer
from ddfs.fetch.transport import Transport
from ddfs.model import KiB, Manifest, MiB
from ddfs.spool.partial import PartialFile
from ddfs.spool.repair import Patch
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.test_spool_spool import manifest_of

CONTENT = random.Random(9).randbytes(3 * MiB + 99)
PIECE = 256 * KiB
COUNT = 13


def of(piece: int) -> bytes:
    return CONTENT[piece * PIECE : (piece + 1) * PIECE]


async def fetched_into(patch: Patch, manifest: Manifest) -> None:
    async with Transport() as transport:
        with trio.fail_after(20):
            await Transfer(manifest, patch, transport, observer=lambda event: None).run()


def test_a_patch_has_only_the_word_of_what_it_holds(tmp_path: Path) -> None:
    patch = Patch(tmp_path, len(CONTENT), [0, 2])
    try:
        patch.hold(1)
        assert not patch.has_journaled
        assert [record.piece for record in patch.journaled()] == [0, 2, 1]
        assert os.fstat(patch.fd).st_size == len(CONTENT)
        assert list(tmp_path.iterdir()) == []  # it goes with whoever has it
    finally:
        patch.close()
    manifest = manifest_of(CONTENT, ["http://a/x"])
    partial = PartialFile.open(tmp_path / "part", tmp_path / "journal", manifest)
    assert partial.has_journaled
    partial.close()


@pytest.mark.parametrize("damaged", [[0], [COUNT - 1], [2, 3, 7]])
async def test_only_what_is_damaged_is_fetched_and_nothing_else_written(
    damaged: list[int], tmp_path: Path
) -> None:
    patch = Patch(tmp_path, len(CONTENT), sorted(set(range(COUNT)) - set(damaged)))
    try:
        async with MirrorLab() as lab:
            manifest = replace(manifest_of(CONTENT, [lab.mirror(CONTENT)]), digests=())
            await fetched_into(patch, manifest)
            assert lab.bytes_sent == sum(len(of(piece)) for piece in damaged)
        for piece in range(COUNT):
            there = os.pread(patch.fd, PIECE, piece * PIECE)
            assert there == (of(piece) if piece in damaged else bytes(len(of(piece))))
    finally:
        patch.close()


async def test_without_piece_hashes_all_of_it_is_fetched_once(tmp_path: Path) -> None:
    patch = Patch(tmp_path, len(CONTENT), [])
    try:
        async with MirrorLab() as lab:
            manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)], with_pieces=False)
            await fetched_into(patch, manifest)
            assert lab.bytes_sent == len(CONTENT)
        assert os.pread(patch.fd, len(CONTENT), 0) == CONTENT
    finally:
        patch.close()
