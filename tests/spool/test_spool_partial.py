"""Partial files: kept for the same content in the same grid, else begun anew."""

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.fetch.transfer import PieceRecord
from ddfs.model import Digest, HashAlgorithm, Manifest, MiB, Mirror, PieceMap
from ddfs.spool.partial import PartialFile

DATA = bytes(range(200)) * 10
PIECES = PieceMap(
    HashAlgorithm.SHA256,
    256,
    b"".join(hashlib.sha256(DATA[i : i + 256]).digest() for i in range(0, len(DATA), 256)),
)
MANIFEST = Manifest(
    "x",
    len(DATA),
    (Digest(HashAlgorithm.SHA256, hashlib.sha256(DATA).hexdigest()),),
    PIECES,
    (Mirror("http://a/x"),),
)
RECORD = PieceRecord(0, "http://a/x", b"")


def opened(directory: Path, manifest: Manifest = MANIFEST) -> PartialFile:
    return PartialFile.open(directory / "p", directory / "j", manifest)


async def test_what_was_committed_is_there_again(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    os.pwrite(partial.fd, DATA[:256], 0)
    await partial.commit([RECORD, PieceRecord(1, "http://a/x", b"")])
    await partial.forget([1])
    partial.close()
    partial.close()
    again = opened(tmp_path)
    assert list(again.journaled()) == [RECORD]
    assert again.bytes_here == 256
    assert os.pread(again.fd, 256, 0) == DATA[:256]
    assert os.fstat(again.fd).st_size == len(DATA)
    again.close()


async def test_other_pieces_or_a_replaced_data_file_begin_anew(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    await partial.commit([RECORD])
    partial.close()
    without_pieces = replace(MANIFEST, pieces=None)
    other = opened(tmp_path, without_pieces)
    assert list(other.journaled()) == []
    await other.commit([RECORD])
    other.close()
    # Written to the side and moved over it: other data behind the same name.
    (tmp_path / "q").write_bytes(bytes(len(DATA)))
    (tmp_path / "q").rename(tmp_path / "p")
    fresh = opened(tmp_path, without_pieces)
    assert list(fresh.journaled()) == []
    fresh.close()


async def test_a_journal_whose_data_is_gone_vouches_for_nothing(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    await partial.commit([RECORD])
    partial.close()
    (tmp_path / "p").unlink()
    again = opened(tmp_path)
    assert list(again.journaled()) == []
    again.close()


def test_two_processes_do_not_share_one(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    with pytest.raises(errors.AlreadyRunningError, match="another ddfs"):
        opened(tmp_path)
    partial.close()
    opened(tmp_path).close()


def test_a_directory_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(errors.StorageError, match="No such file"):
        opened(tmp_path / "none")


def test_a_symlink_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "p").symlink_to(tmp_path / "victim")
    with pytest.raises(errors.StorageError):
        opened(tmp_path)
    assert (tmp_path / "victim").read_bytes() == b"precious"


async def test_what_the_disk_did_not_take_is_never_vouched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = replace(MANIFEST, pieces=None, size=64 * MiB)
    first, lost, noted = (PieceRecord(piece, "http://a/x", bytes([7]) * 32) for piece in range(3))
    partial = opened(tmp_path, manifest)
    await partial.commit([first])
    await partial.note([noted])
    sync, failures = os.fdatasync, [errno.ENOSPC]

    def fdatasync(fd: int) -> None:
        """As the kernel, which tells of lost data once (fsync(2))."""
        if fd == partial.fd and failures:
            raise OSError(failures.pop(), "lost")
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(errors.StorageFullError):
        await partial.commit([lost])
    with pytest.raises(errors.StorageError):
        await partial.commit([lost])
    await partial.note([lost])
    assert not failures
    partial.close()
    again = opened(tmp_path, manifest)
    assert list(again.journaled()) == [first]
    await again.note([lost])
    again.close()
    once_more = opened(tmp_path, manifest)
    assert list(once_more.journaled()) == [first, lost]
    once_more.close()
