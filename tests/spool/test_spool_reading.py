"""Descriptors of published files: of that file, and not of its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from ddfs.primary.publish import look_at
from ddfs.spool import reading
from ddfs.spool.reading import OpenFiles


async def test_a_file_that_got_the_name_anew_is_not_read_through_the_old_one(
    tmp_path: Path,
) -> None:
    files, path, fresh = OpenFiles(), tmp_path / "x@ab.img", tmp_path / "fresh"
    path.write_bytes(b"damaged")
    damaged = look_at(path)
    assert damaged is not None
    try:
        assert await files.read(damaged, 0, 7) == b"damaged"
        # Purged while somebody read it, so that it could not be closed, and fetched again.
        fresh.write_bytes(b"as good")
        fresh.replace(path)
        good = look_at(path)
        assert good is not None
        assert await files.read(good, 0, 7) == b"as good"
        files.forget(str(path))
        assert files._open == {}
    finally:
        files.close()


async def test_a_purged_file_is_closed_when_its_last_reader_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open, it would keep its room for as long as the daemon runs."""
    files, path = OpenFiles(), tmp_path / "x@ab.img"
    path.write_bytes(b"content")
    published = look_at(path)
    assert published is not None
    began, go, read_file = trio.Event(), trio.Event(), reading.read_file

    async def slowly(fd: int, offset: int, length: int) -> bytes:
        began.set()
        await go.wait()
        return await read_file(fd, offset, length)

    monkeypatch.setattr(reading, "read_file", slowly)
    read = []

    async def reader() -> None:
        read.append(await files.read(published, 0, 7))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await began.wait()
            path.unlink()
            files.forget(str(path))
            assert list(files._open) == [(str(path), published.inode)]
            go.set()
    assert read == [b"content"]
    assert files._open == {}
    files.close()
