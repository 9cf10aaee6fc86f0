"""What is on disk and right without being journaled, and what an older content left."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from ddfs.fetch.transfer import PieceRecord
from ddfs.fetch.transport import Transport
from ddfs.model import KiB, Manifest, MiB
from ddfs.spool import regain as regain_module
from ddfs.spool.beside import beside
from ddfs.spool.download import download
from ddfs.spool.partial import PartialFile
from ddfs.spool.regain import regain
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.test_spool_spool import manifest_of

CONTENT = random.Random(5).randbytes(4 * MiB + 777)
PIECE = 256 * KiB
COUNT = 17


def opened(directory: Path, manifest: Manifest) -> PartialFile:
    return PartialFile.open(directory / "part", directory / "journal", manifest)


def piece(number: int) -> bytes:
    return CONTENT[number * PIECE : (number + 1) * PIECE]


async def test_what_is_right_is_journaled_and_nothing_else(tmp_path: Path) -> None:
    manifest = manifest_of(CONTENT, ["http://a/x"])
    partial = opened(tmp_path, manifest)
    os.pwrite(partial.fd, piece(0) + piece(1), 0)
    await partial.commit([PieceRecord(0, "http://a/x", b"")])
    os.pwrite(partial.fd, piece(3)[: PIECE // 2], 3 * PIECE)
    os.pwrite(partial.fd, bytes([piece(5)[0] ^ 1]) + piece(5)[1:], 5 * PIECE)
    os.pwrite(partial.fd, piece(COUNT - 1), (COUNT - 1) * PIECE)
    partial.close()
    again = opened(tmp_path, manifest)
    assert await regain(again, manifest) == PIECE + 777
    again.close()
    last = opened(tmp_path, manifest)
    assert [record.piece for record in last.journaled()] == [0, 1, COUNT - 1]
    assert await regain(last, manifest) == 0
    last.close()


async def test_nothing_without_piece_hashes_or_in_a_new_file(tmp_path: Path) -> None:
    manifest = manifest_of(CONTENT, ["http://a/x"], with_pieces=False)
    partial = opened(tmp_path, manifest)
    assert await regain(partial, manifest) == 0
    os.pwrite(partial.fd, CONTENT, 0)
    assert await regain(partial, manifest) == 0
    partial.close()


async def test_takes_no_longer_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regain_module, "MAX_BYTES", 3 * PIECE)
    manifest = manifest_of(CONTENT, ["http://a/x"])
    partial = opened(tmp_path, manifest)
    os.pwrite(partial.fd, CONTENT, 0)
    assert await regain(partial, manifest) == 3 * PIECE
    partial.close()


async def fetched(manifest: Manifest, target: Path, seeds: Sequence[Path] = ()) -> bytes:
    async with Transport() as transport:
        with trio.fail_after(90):
            await download(
                manifest,
                target,
                transport=transport,
                observer=lambda _: None,
                started=lambda _: None,
                seeds=seeds,
            )
    return target.read_bytes()


async def test_an_unfinished_download_of_another_content_is_a_seed(tmp_path: Path) -> None:
    newer = bytearray(CONTENT)
    newer[2 * PIECE] ^= 1
    target = tmp_path / "x"
    older_manifest = manifest_of(CONTENT, ["http://a/x"])
    partial = PartialFile.open(beside(target, "part"), beside(target, "journal"), older_manifest)
    os.pwrite(partial.fd, CONTENT[: 10 * PIECE], 0)
    await partial.commit([PieceRecord(number, "http://a/x", b"") for number in range(10)])
    partial.close()
    async with MirrorLab() as lab:
        url = lab.mirror(bytes(newer))
        assert await fetched(manifest_of(bytes(newer), [url]), target) == newer
        assert lab.bytes_sent == len(newer) - 9 * PIECE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


async def test_without_piece_hashes_another_content_begins_anew(tmp_path: Path) -> None:
    target = tmp_path / "x"
    older_manifest = manifest_of(CONTENT, ["http://a/x"])
    partial = PartialFile.open(beside(target, "part"), beside(target, "journal"), older_manifest)
    os.pwrite(partial.fd, CONTENT[:PIECE], 0)
    await partial.commit([PieceRecord(0, "http://a/x", b"")])
    partial.close()
    newer = CONTENT[::-1]
    async with MirrorLab() as lab:
        url = lab.mirror(newer)
        manifest = manifest_of(newer, [url], with_pieces=False)
        assert await fetched(manifest, target) == newer
        assert lab.bytes_sent == len(newer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]
