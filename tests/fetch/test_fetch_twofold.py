"""Two SHA-256 sums in one pass are the sums that hashlib makes, and decide as those do."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace

import pytest
from fetch_target import fetch, manifest_of, random_bytes
from hypothesis import given
from hypothesis import strategies as st

from ddfs import errors
from ddfs.fetch import transfer, twofold, whole
from ddfs.fetch.arrivals import Arrival, Arrivals
from ddfs.fetch.events import PieceRejected
from ddfs.fetch.hot import HotPieces, HotRoom
from ddfs.fetch.twofold import Sha256, update_both
from ddfs.fetch.verify import FrontHasher
from ddfs.model import Digest, Grid, HashAlgorithm, MiB
from tests.mirrorlab.mirrorlab import MirrorLab

SIZE = 24 * MiB + 123
CONTENT = random_bytes(SIZE)
PIECES = 25

compiled = pytest.mark.skipif(
    not twofold.is_available(), reason="no compiler, or a CPU without instructions for SHA-256"
)


@pytest.fixture
def together(monkeypatch):
    """As on a host that is slower than its mirrors; the pieces that were hashed in one pass."""
    monkeypatch.setattr(transfer, "OWN_HASH_BYTES_PER_SECOND", 0)
    made: list[int] = []
    original = FrontHasher._hash_next

    def counting(self: FrontHasher, buffer: bytearray) -> bytes:
        made.append(self.position // MiB)
        return original(self, buffer)

    monkeypatch.setattr(FrontHasher, "_hash_next", counting)
    return made


@compiled
@given(st.lists(st.tuples(st.sampled_from(["one", "other", "both"]), st.binary(max_size=300))))
def test_whoever_gets_which_bytes_the_sums_are_those_of_hashlib(steps):
    ours = {"one": Sha256(), "other": Sha256()}
    theirs = {"one": hashlib.sha256(), "other": hashlib.sha256()}
    for who, data in steps:
        view = memoryview(bytearray(data))
        if who == "both":
            update_both(ours["one"], ours["other"], view)
        else:
            ours[who].update(view)
        for name in theirs if who == "both" else [who]:
            theirs[name].update(data)
    for name, right in theirs.items():
        assert ours[name].digest() == right.digest()
        assert ours[name].hexdigest() == right.hexdigest()


@compiled
def test_a_copy_goes_its_own_way():
    first = Sha256()
    first.update(memoryview(bytearray(b"x" * 100)))
    second = first.copy()
    second.update(memoryview(bytearray(b"y")))
    assert first.digest() == hashlib.sha256(b"x" * 100).digest()
    assert second.digest() == hashlib.sha256(b"x" * 100 + b"y").digest()


def test_without_the_library_it_is_not_used(tmp_path):
    assert not twofold.is_usable(tmp_path / "none.so")
    (tmp_path / "text.so").write_text("no library")
    assert not twofold.is_usable(tmp_path / "text.so")


@compiled
def test_a_library_that_hashes_wrong_is_not_used(tmp_path, caplog):
    code = twofold.LIBRARY.read_bytes()
    constant = (0xC67178F2).to_bytes(4, "little")  # of the last round
    assert code.count(constant) == 1
    library = tmp_path / "wrong.so"
    library.write_bytes(code.replace(constant, bytes(4)))
    with caplog.at_level(logging.WARNING):
        assert not twofold.is_usable(library)
    assert "does not hash as it should" in caplog.text
    shutil.copyfile(twofold.LIBRARY, tmp_path / "right.so")
    assert twofold.is_usable(tmp_path / "right.so")


@compiled
async def test_a_wrong_piece_is_no_part_of_the_file(tmp_path):
    grid = Grid(3 * MiB - 1, MiB)
    content = CONTENT[: grid.size]
    digests = [
        Digest(HashAlgorithm.SHA512, hashlib.sha512(content).hexdigest()),
        Digest(HashAlgorithm.SHA256, hashlib.sha256(content).hexdigest()),
    ]
    (tmp_path / "partial").write_bytes(content)
    with (tmp_path / "partial").open("rb") as file:
        hot = HotPieces(MiB, HotRoom())
        follower = FrontHasher(file.fileno(), grid, digests, hot, hashes_pieces=True)
        await follower.advance(MiB)
        wrong = bytearray(MiB)
        assert await follower.hash_next(wrong) == hashlib.sha256(wrong).digest()
        for start in (MiB, 2 * MiB):
            assert follower.position == start
            piece = content[start : start + MiB]
            made = await follower.hash_next(bytearray(piece.ljust(MiB, b"?")))
            assert made == hashlib.sha256(piece).digest()
            follower.accept()
        assert follower.position == follower.reached == grid.size
        assert follower.mismatches() == []
        with pytest.raises(RuntimeError):
            follower.accept()


@compiled
async def test_pieces_in_order_are_hashed_with_their_file(tmp_path, together):
    async with MirrorLab() as lab:
        done = await fetch(manifest_of(CONTENT, [lab.mirror(CONTENT)]), tmp_path / "partial")
    assert done.content == CONTENT
    assert len(done.journal) == PIECES
    # The rest came while a buffer was missing, or over a second connection.
    assert len(together) > PIECES // 4
    assert len(set(together)) == len(together)


@compiled
async def test_wrong_bytes_are_refused_and_fetched_elsewhere(tmp_path, together):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, fault="corrupt"), lab.mirror(CONTENT)]
        done = await fetch(manifest_of(CONTENT, urls), tmp_path / "partial")
    assert done.content == CONTENT
    assert {event.mirror_url for event in done.of(PieceRejected)} == {urls[0]}
    assert together


@compiled
async def test_right_pieces_do_not_make_a_wrong_file_right(tmp_path, together):
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        wrong = replace(manifest, digests=(Digest(HashAlgorithm.SHA256, "0" * 64),))
        with pytest.raises(errors.ChecksumError, match="every piece matches"):
            await fetch(wrong, tmp_path / "partial")
    assert together


async def test_without_the_library_everything_is_as_right(tmp_path, together, monkeypatch):
    monkeypatch.setattr(whole.twofold, "is_available", lambda: False)
    async with MirrorLab() as lab:
        done = await fetch(manifest_of(CONTENT, [lab.mirror(CONTENT)]), tmp_path / "partial")
    assert done.content == CONTENT
    assert not together


async def test_what_comes_after_an_unhashed_piece_waits_for_it():
    arrivals = Arrivals()
    first, second = Arrival(1, 10, None, None), Arrival(1, 11, b"b", None)
    other = Arrival(2, 90, b"c", None)
    for arrival in (first, second, other):
        arrivals.put(arrival)
    assert list(arrivals.collect()) == [first, second, other]
    assert list(arrivals.ready(1)) == []
    assert list(arrivals.ready(2)) == [other]
    await arrivals.wait_for(2)
    first.digest = b"a"
    assert list(arrivals.ready(1)) == [first, second]
    await arrivals.wait_for(1)
    assert list(arrivals.ready(1)) == []
