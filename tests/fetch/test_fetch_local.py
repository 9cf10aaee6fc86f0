"""Files of this host as mirrors."""

import os
import threading
import time
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.fetch import elsewhere, local
from ddfs.fetch.transport import Transport
from ddfs.model import ByteRange, MiB
from tests.fetch.fetch_target import fetch, manifest_of, random_bytes
from tests.mirrorlab.mirrorlab import MirrorLab

CONTENT = random_bytes(9 * MiB + 321)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "an image.img"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("piece_length", [MiB, None])
@pytest.mark.parametrize("can_copy", [True, False], ids=["by the kernel", "by reading"])
async def test_a_file_is_a_mirror(
    image: Path,
    tmp_path: Path,
    piece_length: int | None,
    can_copy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not can_copy:
        monkeypatch.setattr(local.LocalFile, "copy_into", lambda *_: None)
    manifest = manifest_of(CONTENT, [image.as_uri()], piece_length=piece_length)
    done = await fetch(manifest, tmp_path / "x")
    assert done.content == CONTENT
    assert image.read_bytes() == CONTENT


async def test_what_is_hashed_is_the_copy(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the kernel copied: a piece that arrived wrong is not taken for the original."""
    real = os.copy_file_range

    def spoiled(source: int, target: int, count: int, start: int, position: int) -> int:
        copied = real(source, target, count, start, position)
        os.pwrite(target, b"spoiled", position)
        return copied

    monkeypatch.setattr(os, "copy_file_range", spoiled)
    with pytest.raises(errors.MirrorsExhaustedError, match="do not match"):
        await fetch(manifest_of(CONTENT, [image.as_uri()]), tmp_path / "x")


async def test_it_shares_the_work_with_others_and_a_lie_is_found(
    image: Path, tmp_path: Path
) -> None:
    image.write_bytes(bytes(len(CONTENT)))
    async with MirrorLab() as lab:
        urls = [image.as_uri(), lab.mirror(CONTENT, rate=20 * MiB)]
        done = await fetch(manifest_of(CONTENT, urls), tmp_path / "x")
    assert done.content == CONTENT


async def test_what_is_no_file_is_refused_in_no_time(tmp_path: Path, image: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    own = tmp_path / "own"
    own.mkdir()
    (own / "x.img").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to(own / "x.img")
    async with Transport() as transport:
        transport.elsewhere.forbidden = (own,)
        for url, reason in (
            ((tmp_path / "nothing").as_uri(), "no such file"),
            (tmp_path.as_uri(), "not a regular file"),
            ((tmp_path / "fifo").as_uri(), "not a regular file"),
            ("file:///dev/zero", "not a regular file"),
            ((tmp_path / "loop").as_uri(), "cannot be opened"),
            ((own / "x.img").as_uri(), "ddfs's own"),
            ((tmp_path / "link").as_uri(), "ddfs's own"),
            ("file://elsewhere/x", "this host"),
            ("file:x", "absolute"),
        ):
            with pytest.raises(errors.MirrorError, match=reason):
                await transport.size_of(url)
        assert await transport.size_of(image.as_uri()) == len(CONTENT)
        part = await transport.read_range(image.as_uri(), ByteRange(5, 9), size=len(CONTENT))
        assert part == CONTENT[5:9]


async def test_a_file_of_another_size_or_that_is_gone_is_one_line(
    image: Path, tmp_path: Path
) -> None:
    manifest = manifest_of(CONTENT, [image.as_uri()])
    image.write_bytes(CONTENT + b"x")
    with pytest.raises(errors.MirrorsExhaustedError, match=r"has \d+ bytes, not \d+"):
        await fetch(manifest, tmp_path / "x")
    image.unlink()
    with pytest.raises(errors.MirrorsExhaustedError, match="no such file"):
        await fetch(manifest, tmp_path / "y")


async def test_a_file_that_is_written_to_meanwhile_is_one_line(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(CONTENT, [image.as_uri()], piece_length=None)
    changed = threading.Event()
    bring = elsewhere._bring

    def slowly(*arguments: object) -> int:
        count = bring(*arguments)  # type: ignore[arg-type]
        if not changed.is_set():
            changed.set()
            time.sleep(0.02)
            with image.open("r+b") as file:
                file.write(b"new bytes")
        return count

    monkeypatch.setattr(elsewhere, "_bring", slowly)
    with pytest.raises(errors.MirrorsExhaustedError, match="changed while it was being copied"):
        await fetch(manifest, tmp_path / "x")
