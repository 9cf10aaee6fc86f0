"""Verified bytes into a published file: in place, and known again after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.model import ByteRange, PublishedFile
from ddfs.primary import kernel
from ddfs.primary.directory import DirectoryStorage

CONTENT = "sha-256:" + "ab" * 32


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[DirectoryStorage]:
    (tmp_path / "images").mkdir()
    made = DirectoryStorage("default", tmp_path / "images")
    made.prepare()
    yield made
    made.close()


@pytest.fixture
def published(storage: DirectoryStorage) -> Iterator[PublishedFile]:
    partial = storage.partial_path(CONTENT)
    partial.write_bytes(b"0123456789")
    found = storage.publish(partial, "a@ab.img")
    yield found
    if os.path.lexists(found.path):
        storage.purge(storage.identify(Path(found.path)) or found)


def test_only_the_ranges_are_written_and_it_stays_the_file_that_it_was(
    storage: DirectoryStorage, published: PublishedFile, tmp_path: Path
) -> None:
    good = tmp_path / "good"
    good.write_bytes(b"abcdefghij")
    with open(published.path, "rb") as running, good.open("rb") as source:
        storage.mend(published, source.fileno(), [ByteRange(1, 3), ByteRange(9, 10)])
        assert running.read() == b"0bc345678j"
    assert storage.is_intact(published)
    assert os.stat(published.path).st_mode & 0o777 == 0o444
    assert not list(storage.partial_dir.glob("*.mending*"))


def test_a_crash_in_the_middle_leaves_a_file_that_is_known(
    storage: DirectoryStorage, published: PublishedFile, tmp_path: Path
) -> None:
    mark = storage.partial_dir / "a@ab.img.mending"
    mark.write_text(json.dumps(asdict(published)))
    (storage.partial_dir / "b@cd.img.mending-new").touch()
    with open(published.path, "rb") as file:
        kernel.set_immutable(file.fileno(), False)
        os.utime(file.fileno(), ns=(1, 1))
    assert not storage.is_intact(published)
    storage.close()
    again = DirectoryStorage("default", tmp_path / "images")
    again.prepare()
    try:
        assert again.is_intact(published)
        assert not list(again.partial_dir.glob("*.mending*"))
    finally:
        again.close()


def test_another_file_of_that_name_is_not_touched(
    storage: DirectoryStorage, published: PublishedFile, tmp_path: Path
) -> None:
    storage.purge(published)
    Path(published.path).write_bytes(b"somebody's")
    good = tmp_path / "good"
    good.write_bytes(b"abcdefghij")
    with good.open("rb") as source, pytest.raises(errors.StorageError, match="any more"):
        storage.mend(published, source.fileno(), [ByteRange(0, 5)])
    assert Path(published.path).read_bytes() == b"somebody's"


def test_it_is_the_published_file_while_it_is_mended(
    storage: DirectoryStorage, published: PublishedFile, tmp_path: Path
) -> None:
    intact: list[bool] = []

    class Looking(list[ByteRange]):
        def __iter__(self) -> Iterator[ByteRange]:
            for each in super().__iter__():
                yield each
                intact.append(storage.is_intact(published))

    good = tmp_path / "good"
    good.write_bytes(b"abcdefghij")
    with good.open("rb") as source:
        storage.mend(published, source.fileno(), Looking([ByteRange(0, 5)]))
    assert intact == [True]
    assert storage.is_intact(published)


def test_it_is_that_also_to_who_looks_when_the_mending_ends(
    storage: DirectoryStorage, published: PublishedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [replace(published, mtime_ns=1), published]
    monkeypatch.setattr(storage, "identify", lambda _path: looks.pop(0))
    assert storage.is_intact(published)


def test_what_is_too_short_to_mend_with_is_an_error(
    storage: DirectoryStorage, published: PublishedFile, tmp_path: Path
) -> None:
    good = tmp_path / "good"
    good.write_bytes(b"abcde")
    with good.open("rb") as source, pytest.raises(errors.StorageError, match="ends at byte 5"):
        storage.mend(published, source.fileno(), [ByteRange(1, 10)])
    assert storage.is_intact(published)


def test_a_failure_leaves_no_mark(
    storage: DirectoryStorage, published: PublishedFile, tmp_path: Path
) -> None:
    with (tmp_path / "good").open("wb") as only_written:
        with pytest.raises(errors.StorageError, match="cannot mend"):
            storage.mend(published, only_written.fileno(), [ByteRange(1, 3)])
    assert storage.is_intact(published)
    assert not list(storage.partial_dir.glob("*.mending*"))
