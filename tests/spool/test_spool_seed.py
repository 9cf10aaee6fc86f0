"""Seeds: what is used of them, that it is right, and that nothing happens to them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfs import errors
from ddfs.model import Digest, HashAlgorithm, KiB, Manifest, MiB
from ddfs.spool import seed as seed_module
from ddfs.spool.partial import PartialFile
from ddfs.spool.seed import check_seed, plant
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.test_spool_regain import fetched
from tests.spool.test_spool_spool import manifest_of, world

CONTENT = random.Random(3).randbytes(4 * MiB + 777)
PIECE = 256 * KiB
COUNT = 17


@contextmanager
def partial_of(manifest: Manifest, directory: Path) -> Iterator[PartialFile]:
    partial = PartialFile.open(directory / "part", directory / "journal", manifest)
    try:
        yield partial
    finally:
        partial.close()


def seed_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o444)
    return path


async def test_an_older_version_saves_what_it_has(tmp_path: Path) -> None:
    older = bytearray(CONTENT)
    older[5 * PIECE + 9] ^= 1
    older[9 * PIECE : 10 * PIECE] = bytes(PIECE)
    seed = seed_file(tmp_path / "older", bytes(older))
    before = seed.stat()
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        content = await fetched(manifest_of(CONTENT, [url]), tmp_path / "x", [seed])
        assert lab[url].bytes_sent == 2 * PIECE
    assert content == CONTENT
    assert seed.read_bytes() == older
    assert (seed.stat().st_mtime_ns, seed.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert (tmp_path / "x").stat().st_ino != before.st_ino


async def test_several_seeds_complete_it_and_no_mirror_is_asked(tmp_path: Path) -> None:
    half = 8 * PIECE
    seeds = [
        seed_file(tmp_path / "nothing", bytes(3 * PIECE)),
        # Moved by whole pieces, and ending with the short last one.
        seed_file(tmp_path / "tail", CONTENT[half:]),
        tmp_path / "gone",
        seed_file(tmp_path / "front", CONTENT[: half + 5] + b"more"),
    ]
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        assert await fetched(manifest_of(CONTENT, [url]), tmp_path / "x", seeds) == CONTENT
        assert lab.requests == 0


@pytest.mark.parametrize("change", ["none", "a byte", "the length"])
async def test_without_piece_hashes_it_is_all_or_nothing(change: str, tmp_path: Path) -> None:
    data = bytearray(CONTENT)
    if change == "a byte":
        data[-1] ^= 1
    if change == "the length":
        data += b"x"
    seed = seed_file(tmp_path / "seed", bytes(data))
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        manifest = manifest_of(CONTENT, [url], with_pieces=False)
        assert await fetched(manifest, tmp_path / "x", [seed]) == CONTENT
        assert lab.bytes_sent == (0 if change == "none" else len(CONTENT))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_planted_is_right_and_all_there_was(data: st.DataObject) -> None:
    length = 4 * KiB
    blocks = [bytes([n]) * length for n in range(4)]
    wanted = data.draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=8))
    tail = data.draw(st.integers(1, length))
    content = b"".join(wanted)[: (len(wanted) - 1) * length + tail]
    given_seed = b"".join(data.draw(st.lists(st.sampled_from(blocks), max_size=8)))
    given_seed = given_seed[: data.draw(st.integers(0, len(given_seed)))]
    manifest = manifest_of(content, ["http://h/x"], piece_length=length)
    grid = manifest.grid
    in_seed = {given_seed[at : at + length] for at in range(0, len(given_seed), length)}
    with TemporaryDirectory() as name:
        directory = Path(name)
        seed = seed_file(directory / "seed", given_seed)
        with partial_of(manifest, directory) as partial:
            planted = trio.run(plant, partial, manifest, [seed])
            here = {record.piece for record in partial.journaled()}
            assert planted == partial.bytes_here
        result = (directory / "part").read_bytes()
        for piece in range(grid.count):
            place = slice(grid.bytes_of(piece).start, grid.bytes_of(piece).end)
            if piece in here:
                assert result[place] == content[place]
            else:
                assert content[place] not in in_seed
        assert seed.read_bytes() == given_seed


async def test_a_seed_that_changes_meanwhile_plants_nothing_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = tmp_path / "seed"
    seed.write_bytes(CONTENT)
    copy = seed_module._Sowing._copy

    def change_and_copy(self: object, start: int, target: object) -> None:
        with seed.open("r+b") as file:
            file.seek(start)
            file.write(b"changed")
        copy(self, start, target)  # type: ignore[arg-type]

    monkeypatch.setattr(seed_module._Sowing, "_copy", change_and_copy)
    manifest = manifest_of(CONTENT, ["http://h/x"])
    with partial_of(manifest, tmp_path) as partial:
        assert await plant(partial, manifest, [seed]) == 0
        assert list(partial.journaled()) == []


async def test_without_reflinks_bytes_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    manifest = manifest_of(CONTENT, ["http://h/x"])
    seed = seed_file(tmp_path / "seed", CONTENT)
    with partial_of(manifest, tmp_path) as partial:
        assert await plant(partial, manifest, [seed]) == len(CONTENT)
    assert (tmp_path / "part").read_bytes() == CONTENT


async def test_a_seed_that_shrinks_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seed = tmp_path / "seed"
    seed.write_bytes(CONTENT)
    other = seed_file(tmp_path / "other", CONTENT[-PIECE - 777 :])
    use = seed_module._Sowing._use

    def shrink_and_use(self: object, part: object) -> list[int]:
        if seed.stat().st_size:
            os.truncate(seed, 0)
        return use(self, part)  # type: ignore[arg-type]

    monkeypatch.setattr(seed_module._Sowing, "_use", shrink_and_use)
    manifest = manifest_of(CONTENT, ["http://h/x"])
    with partial_of(manifest, tmp_path) as partial:
        assert await plant(partial, manifest, [seed, other]) == PIECE + 777
    assert "it cannot be read to its end" in caplog.text


async def test_what_is_journaled_stays_and_the_partial_file_is_no_seed(tmp_path: Path) -> None:
    manifest = manifest_of(CONTENT, ["http://h/x"])
    front = seed_file(tmp_path / "front", CONTENT[: 3 * PIECE])
    with partial_of(manifest, tmp_path) as partial:
        assert await plant(partial, manifest, [front]) == 3 * PIECE
    with partial_of(manifest, tmp_path) as partial:
        assert partial.bytes_here == 3 * PIECE
        assert await plant(partial, manifest, [tmp_path / "part"]) == 0
        whole = seed_file(tmp_path / "whole", CONTENT)
        assert await plant(partial, manifest, [whole]) == len(CONTENT) - 3 * PIECE


def test_what_cannot_be_a_seed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "mount").mkdir()
    template = seed_file(tmp_path / "mount" / "t.img", b"x")
    (tmp_path / "link").symlink_to(template)
    for name, says in (
        ("gone", "No such file"),
        ("fifo", "not a regular file"),
        ("mount", "not a regular file"),
        ("link", "lies in the template pool"),
        ("mount/t.img", "lies in the template pool"),
    ):
        with pytest.raises(errors.InvalidValueError, match=says) as caught:
            check_seed(tmp_path / name, tmp_path / "mount")
        assert str(caught.value).startswith(str(tmp_path / name))
    check_seed(template)


async def test_a_template_comes_from_a_seed(tmp_path: Path) -> None:
    seed = seed_file(tmp_path / "seed", CONTENT)
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        order = host.knows(manifest_of(CONTENT, [url]))
        host.spool.demand(order, seeds=[seed])
        with trio.fail_after(90):
            published = await host.spool.wait_published(order)
        assert Path(published.path).read_bytes() == CONTENT
        assert published.inode != seed.stat().st_ino
        assert lab.requests == 0


async def test_a_seed_cannot_make_a_wrong_file_right(tmp_path: Path) -> None:
    seed = seed_file(tmp_path / "seed", CONTENT)
    async with MirrorLab() as lab, world(tmp_path) as host:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        manifest = replace(manifest, digests=(Digest(HashAlgorithm.SHA256, "ab" * 32),))
        order = host.knows(manifest)
        host.spool.demand(order, seeds=[seed])
        with trio.fail_after(90), pytest.raises(errors.ChecksumError):
            await host.spool.wait_published(order)
