"""Descriptors of published files: of that file, and not of its name."""

from __future__ import annotations

from pathlib import Path

from ddfs.primary.publish import look_at
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
