"""The whole-file hash and what is done where it does not match, with a file and no mirrors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from fetch_target import file_target, manifest_of, random_bytes

from ddfs import errors
from ddfs.fetch.blame import Plan
from ddfs.fetch.events import WholeFileCompared
from ddfs.fetch.hot import HotRoom
from ddfs.fetch.pieces import HELD
from ddfs.fetch.whole import WholeFile
from ddfs.model import Digest, HashAlgorithm, MiB

CONTENT = random_bytes(3 * MiB + 77)


class OneMirror:
    """Brings every piece as it is in *content*, at once; implements whole.Fetching."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.manifest = manifest_of(CONTENT, ["http://a.example/image"], piece_length=None)
        self.grid = self.manifest.grid
        self.states = bytearray(self.grid.count)
        self.content = content
        self.fd = os.open(path, os.O_RDWR)
        self.again: list[int] = []
        self.waits = self.cut_at = 0
        self.events: list[WholeFileCompared] = []
        self.blamed: list[int] = []
        self.whole: WholeFile

    def bring(self, piece: int) -> Plan:
        place = self.grid.bytes_of(piece)
        part = self.content[place.start : place.end]
        os.pwrite(self.fd, part, place.start)
        self.states[piece] = HELD
        plan = self.whole.received(piece, 0, hashlib.sha256(part).digest())
        self.whole.advance()
        return plan

    def cut(self, length: int) -> None:
        """As somebody does who has the file's name."""
        os.ftruncate(self.fd, length)
        os.ftruncate(self.fd, len(CONTENT))

    def observe(self, event: WholeFileCompared) -> None:
        self.events.append(event)

    async def wait_complete(self) -> None:
        await trio.lowlevel.checkpoint()
        self.waits += 1
        if self.waits == self.cut_at:
            self.cut(0)

    async def fetch_again(self, plan: Plan) -> None:
        await trio.lowlevel.checkpoint()
        todo = list(plan)
        while todo:
            piece = todo.pop(0)
            self.states[piece] = 0
            self.whole.reopened([piece])
            self.again.append(piece)
            todo += self.bring(piece)

    async def forget(self, pieces: Collection[int]) -> None:
        raise AssertionError("there is nobody whose bytes could be put back")

    def record(self, piece: int, mirror: int, digest: bytes) -> None:
        raise AssertionError("there is nobody whose bytes could be put back")

    async def commit(self) -> None:
        await trio.lowlevel.checkpoint()

    async def start_over(self) -> None:
        await trio.lowlevel.checkpoint()

    def url(self, mirror: int) -> str:
        return self.manifest.mirrors[mirror].url

    def usable(self) -> list[int]:
        return [0]

    def blame(self, mirror: int, reason: str) -> None:
        self.blamed.append(mirror)


@contextmanager
def one_mirror(path: Path, content: bytes) -> Iterator[OneMirror]:
    with file_target(path) as target:
        mirror = OneMirror(path, content)
        room = HotRoom(0)
        mirror.whole = WholeFile(mirror.manifest, target, mirror.states, mirror, room)
        yield mirror
        os.close(mirror.fd)


async def test_what_the_disk_changed_is_fetched_again_and_nobody_blamed(tmp_path):
    with one_mirror(tmp_path / "partial", CONTENT) as mirror:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mirror.whole.see_through)
            await trio.testing.wait_all_tasks_blocked()
            for piece in range(mirror.grid.count):
                mirror.bring(piece)
            # Before anybody has read it back.
            os.pwrite(mirror.fd, bytes([CONTENT[MiB] ^ 1]), MiB)
        assert (tmp_path / "partial").read_bytes() == CONTENT
        assert [event.ok for event in mirror.events] == [False, True]
        assert mirror.blamed == []


async def test_of_what_an_earlier_run_left_only_the_damage_is_fetched(tmp_path):
    with one_mirror(tmp_path / "partial", CONTENT) as mirror:
        for piece in range(mirror.grid.count):
            mirror.bring(piece)
        os.pwrite(mirror.fd, bytes([CONTENT[MiB] ^ 1]), MiB)
        await mirror.whole.see_through()
        assert (tmp_path / "partial").read_bytes() == CONTENT
        assert mirror.again == [1]
        assert mirror.blamed == []


async def test_the_same_wrong_bytes_again_are_an_error(tmp_path):
    wrong = bytes(byte ^ 1 for byte in CONTENT)
    with one_mirror(tmp_path / "partial", wrong) as mirror:
        for piece in range(mirror.grid.count):
            mirror.bring(piece)
        with pytest.raises(errors.ChecksumError, match="the same bytes"):
            await mirror.whole.see_through()
        assert mirror.again == list(range(mirror.grid.count))
        assert [event.ok for event in mirror.events] == [False]


@pytest.mark.parametrize("at", range(2, 8))
async def test_a_cut_is_noticed_while_another_one_is_mended(tmp_path, at):
    with one_mirror(tmp_path / "partial", CONTENT) as mirror:
        for piece in range(mirror.grid.count):
            mirror.bring(piece)
        mirror.cut(MiB)
        mirror.cut_at = at
        await mirror.whole.see_through()
        assert (tmp_path / "partial").read_bytes() == CONTENT
        assert mirror.blamed == []


async def test_a_cut_within_a_block_that_is_written_over_is_noticed(tmp_path):
    """It leaves no hole: the rest of the block is zeros."""
    with one_mirror(tmp_path / "partial", CONTENT) as mirror:
        mirror.cut(0)
        mirror.whole.advance()
        mirror.bring(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mirror.whole.see_through)
            while mirror.whole._follower.position < MiB:
                await trio.sleep(0.01)
            os.ftruncate(mirror.fd, MiB - 100)
            for piece in range(1, mirror.grid.count):
                mirror.bring(piece)
        assert (tmp_path / "partial").read_bytes() == CONTENT
        assert mirror.again == [0]


async def test_what_is_a_hole_and_right_is_not_fetched_again(tmp_path):
    """Some file systems store no zeros, and a seed has its own holes."""
    with one_mirror(tmp_path / "partial", bytes(len(CONTENT))) as mirror:
        zeros = hashlib.sha256(bytes(len(CONTENT))).hexdigest()
        mirror.whole.digests = (Digest(HashAlgorithm.SHA256, zeros),)
        mirror.whole._follower = mirror.whole._new_follower()
        for piece in range(mirror.grid.count):
            mirror.bring(piece)
        mirror.cut(0)
        await mirror.whole.see_through()
        assert mirror.again == []
        assert [event.ok for event in mirror.events] == [True]
