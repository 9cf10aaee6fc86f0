"""Pieces that just arrived are hashed from memory, and only while they are what the file has."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest
from fetch_target import fetch, file_target, manifest_of, random_bytes

from ddfs.fetch import hot as hot_module
from ddfs.fetch import verify
from ddfs.fetch.hot import HOT_BYTES, HotPieces, HotRoom
from ddfs.fetch.pieces import HELD
from ddfs.fetch.segment import Segment
from ddfs.fetch.verify import FrontHasher
from ddfs.fetch.whole import WholeFile
from ddfs.model import Digest, Grid, HashAlgorithm, MiB
from tests.mirrorlab.mirrorlab import MirrorLab

LENGTH = 4 * MiB
FIT = HOT_BYTES // LENGTH


def test_only_what_the_hash_comes_to_soon_gets_a_buffer():
    hot = HotPieces(LENGTH, HotRoom())
    assert hot.lend(FIT) is None
    assert [len(hot.lend(piece) or b"") for piece in range(FIT)] == [LENGTH] * FIT
    assert hot.lend(0) is None
    assert hot.take(1) is None
    assert hot.lend(1) is None, "the hash has passed it"


def test_a_buffer_goes_round():
    hot = HotPieces(LENGTH, HotRoom(LENGTH * 2))
    first, second = hot.lend(0), hot.lend(1)
    assert first is not None
    assert second is not None
    assert hot.lend(2) is None
    hot.keep(0, first)
    assert hot.take(0) is first
    hot.give_back(first)
    assert hot.lend(2) is first
    hot.keep(1, second)
    hot.forget(1)
    assert hot.take(1) is None
    assert hot.lend(3) is second


def test_the_piece_furthest_behind_makes_room():
    hot = HotPieces(LENGTH, HotRoom(LENGTH))
    buffer = hot.lend(3)
    assert buffer is not None
    hot.keep(3, buffer)
    assert hot.lend(2) is buffer
    assert hot.take(3) is None


def test_what_the_hash_has_passed_otherwise_makes_room():
    hot = HotPieces(LENGTH, HotRoom(LENGTH))
    buffer = hot.lend(1)
    assert buffer is not None
    hot.keep(1, buffer)
    assert hot.take(2) is None
    assert hot.lend(3) is buffer


def test_who_is_faster_than_the_hash_waits_for_a_buffer(monkeypatch):
    hot = HotPieces(LENGTH, HotRoom())
    buffers = [hot.lend(piece) for piece in range(FIT)]
    assert buffers[0] is not None
    hot.keep(0, buffers[0])
    timer = threading.Timer(0.01, lambda: hot.give_back(hot.take(0) or bytearray()))
    with hot.followed():
        assert hot.lend(FIT) is None, "it waits a moment only"
        monkeypatch.setattr(hot_module, "_WAIT_BYTES_PER_SECOND", LENGTH / 10)
        timer.start()
        assert hot.lend(FIT) is buffers[0]
    timer.join()


def test_nobody_waits_for_a_hash_that_stands_or_is_far_away():
    # A piece of which a wait would be noticed.
    length = HOT_BYTES // 2
    hot, several = HotPieces(length, HotRoom(0)), 500
    began = time.monotonic()
    assert [hot.lend(0) for _ in range(several)] == [None] * several
    with hot.followed():
        assert [hot.lend(100) for _ in range(several)] == [None] * several
    assert time.monotonic() - began < several * length / hot_module._WAIT_BYTES_PER_SECOND / 2


def test_several_fetches_share_the_room_and_give_it_back():
    room = HotRoom(LENGTH)
    one, other = HotPieces(LENGTH, room), HotPieces(LENGTH, room)
    assert one.lend(0) is not None
    assert other.lend(0) is None
    one.close()
    assert one.lend(0) is None
    assert other.lend(0) is not None


def test_large_pieces_are_not_kept():
    assert HotPieces(HOT_BYTES, HotRoom()).lend(0) is None


async def test_the_hash_takes_what_is_in_memory_and_reads_the_rest(tmp_path):
    grid = Grid(5 * MiB + 100, 1 * MiB)
    content = random_bytes(grid.size)
    digest = Digest(HashAlgorithm.SHA256, hashlib.sha256(content).hexdigest())
    hot = HotPieces(grid.piece_length, HotRoom())
    with (tmp_path / "partial").open("w+b") as file:
        # Not what is hashed, where it is in memory: so reading it back would be seen.
        file.write(content[: 2 * MiB] + bytes(1 * MiB) + content[3 * MiB : 5 * MiB] + bytes(100))
        file.flush()
        follower = FrontHasher(file.fileno(), grid, [digest], hot)
        for piece in (2, 5):
            place, buffer = grid.bytes_of(piece), hot.lend(piece)
            assert buffer is not None
            buffer[: len(place)] = content[place.start : place.end]
            hot.keep(piece, buffer)
        await follower.advance(grid.size)
        assert follower.position == grid.size
        assert follower.mismatches() == []
        # Once more, now that nothing is in memory.
        follower = FrontHasher(file.fileno(), grid, [digest], hot)
        await follower.advance(grid.size)
        assert follower.mismatches() == [digest]


def test_a_piece_that_came_on_two_ways_is_not_kept(tmp_path):
    grid, content = Grid(2 * MiB, 1 * MiB), random_bytes(2 * MiB)
    hot, kept = HotPieces(grid.piece_length, HotRoom()), []
    with (tmp_path / "partial").open("w+b") as file:
        segment = Segment(
            file.fileno(),
            grid,
            None,
            0,
            2,
            lambda piece, _, buffer: kept.append((piece, buffer)),
            hot,
        )
        view = segment._view(memoryview(bytearray(MiB)))
        view[:1000] = content[:1000]
        segment.feed(view[:1000])
        # The mirror points to where another client brings the rest.
        assert segment.claim(2 * MiB) == 2 * MiB - 1000
        segment.feed(memoryview(content)[1000:])
    assert kept == [(0, None), (1, None)]
    assert (tmp_path / "partial").read_bytes() == content


@pytest.mark.parametrize("piece_length", [1 * MiB, None])
async def test_what_comes_in_order_is_not_read_back(tmp_path, monkeypatch, piece_length):
    content = random_bytes(24 * MiB + 123)
    read: list[int] = []
    original = verify._read_into

    def counting(fd: int, view: memoryview, position: int) -> None:
        read.append(len(view))
        original(fd, view, position)

    monkeypatch.setattr(verify, "_read_into", counting)
    async with MirrorLab() as lab:
        manifest = manifest_of(
            content, [lab.mirror(content, rate=60 * MiB)], piece_length=piece_length
        )
        done = await fetch(manifest, tmp_path / "partial")
    assert done.content == content
    # A second connection to the same mirror may bring the rest out of order.
    assert sum(read) < 0.75 * len(content)


def test_no_piece_that_is_fetched_again_is_kept(tmp_path):
    content = random_bytes(4 * MiB)
    with file_target(tmp_path / "partial") as target:
        states, manifest = bytearray([HELD] * 4), manifest_of(content, [])
        whole = WholeFile(manifest, target, states, None, HotRoom())
        for piece in range(3):
            buffer = whole.hot.lend(piece)
            assert buffer is not None
            whole.arrived(piece, buffer, is_held=True)
        whole.reopened({0: frozenset(), 2: frozenset()})
        assert [whole.hot.take(piece) is None for piece in range(3)] == [True, False, True]
        whole.hot.close()
