"""Disks in the making: named when complete, and nothing left of those that were not."""

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.image import disk
from ddfs.image.openers import processes_with_open
from ddfs.model import ImageFormat, KiB, MiB


def nothing() -> None:
    """Nobody cancels."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_copy_is_the_same_and_as_sparse(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.write(os.urandom(64 * KiB))
        file.seek(200 * MiB)
        file.write(b"the end")
    target = tmp_path / "a 'b' ü"
    new = disk.NewDisk(tmp_path)
    new.copy(source, nothing)
    new.publish(target, replace=False)
    new.close()
    assert names(tmp_path) == ["a 'b' ü", "source"]
    command = ["cmp", source, target]
    assert subprocess.run(command, check=False).returncode == 0
    assert target.stat().st_blocks * 512 <= source.stat().st_blocks * 512 + MiB
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_copy_shares_its_blocks_where_the_file_system_can(tmp_path: Path) -> None:
    image, mountpoint = tmp_path / "image", tmp_path / "fs"
    with image.open("wb") as file:
        file.truncate(320 * MiB)
    mountpoint.mkdir()
    for command in (["mkfs.xfs", "-q", image], ["mount", "-n", "-o", "loop", image, mountpoint]):
        subprocess.run(command, check=True, capture_output=True)
    try:
        source = mountpoint / "source"
        source.write_bytes(os.urandom(32 * MiB))
        free = os.statvfs(mountpoint).f_bfree
        new = disk.NewDisk(mountpoint)
        assert new.copy(source, nothing) is True
        new.publish(mountpoint / "copy", replace=False)
        new.close()
        assert (mountpoint / "copy").read_bytes() == source.read_bytes()
        used = (free - os.statvfs(mountpoint).f_bfree) * os.statvfs(mountpoint).f_frsize
        assert used < 4 * MiB
    finally:
        subprocess.run(["umount", "-n", "-l", mountpoint], check=True)


def test_a_copy_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(64 * KiB))

    def cancel() -> None:
        raise InterruptedError

    new = disk.NewDisk(tmp_path)
    try:
        is_shared = new.copy(source, cancel)
    except errors.StorageError:
        is_shared = False
    new.close()
    assert is_shared or names(tmp_path) == ["source"]


def test_what_is_there_is_replaced_only_when_told(tmp_path: Path) -> None:
    old = tmp_path / "disk"
    old.write_bytes(b"old")
    old.chmod(0o640)
    new = disk.NewDisk(tmp_path)
    with pytest.raises(errors.NameTakenError, match="--replace"):
        new.publish(old, replace=False)
    assert old.read_bytes() == b"old"
    new.take_after(old)
    new.publish(old, replace=True)
    new.close()
    assert (old.read_bytes(), old.stat().st_mode & 0o777) == (b"", 0o640)
    assert names(tmp_path) == ["disk"]


def test_what_a_crash_left_goes_and_what_is_being_made_stays(tmp_path: Path) -> None:
    (tmp_path / f"{disk.TEMPORARY_PREFIX}0123").write_bytes(b"left")
    (tmp_path / f"{disk.TEMPORARY_PREFIX}dir").mkdir()
    first = disk.NewDisk(tmp_path)
    second = disk.NewDisk(tmp_path)
    assert {first.path.name, second.path.name} <= set(names(tmp_path))
    assert f"{disk.TEMPORARY_PREFIX}0123" not in names(tmp_path)
    first.close()
    second.close()


def test_an_overlay_does_not_look_at_its_backing_file(tmp_path: Path) -> None:
    new = disk.NewDisk(tmp_path)
    new.overlay(tmp_path / "no, such: file", ImageFormat.RAW, 8 * MiB)
    command = ["qemu-img", "info", new.path]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "virtual size: 8 MiB" in said
    assert f"backing file: {tmp_path}/no, such: file" in said
    assert "backing file format: raw" in said
    new.close()


def test_a_raw_copy_grows(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * MiB)
    new = disk.NewDisk(tmp_path)
    new.copy(tmp_path / "source", nothing)
    new.grow(ImageFormat.RAW, 3 * MiB)
    assert new.path.stat().st_size == 3 * MiB
    new.close()


def test_qemu_img_says_why_in_one_line(tmp_path: Path) -> None:
    new = disk.NewDisk(tmp_path)
    with pytest.raises(errors.StorageError, match=r"^qemu-img resize: [^\n]+$"):
        new.grow(ImageFormat.QCOW2, 16 * MiB)
    new.close()


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(errors.StorageError, match="No such file"):
        disk.NewDisk(tmp_path / "gone")


def test_who_has_a_file_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with subprocess.Popen(["tail", "-f", path]) as process:
        try:
            while not (found := processes_with_open({str(path)})):
                pass
            assert found == {f"process {process.pid} (tail)"}
        finally:
            process.kill()
    assert processes_with_open({str(path)}) == set()


def test_its_lock_is_seen_by_others(tmp_path: Path) -> None:
    new = disk.NewDisk(tmp_path)
    with new.path.open("r+b") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.close()


def test_a_disk_says_what_it_was_made_for(tmp_path: Path) -> None:
    path = tmp_path / "vm1"
    new = disk.NewDisk(tmp_path)
    new.write(b"data")
    new.mark("one")
    new.publish(path, replace=False)
    new.close()
    assert path.read_bytes() == b"data"
    assert not disk.is_marked_otherwise(path, "one")
    assert not disk.is_marked_otherwise(tmp_path / "gone", "one")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    try:
        os.setxattr(plain, "user.probe", b"")
    except OSError:
        # Here nothing can be said of any file.
        assert not disk.is_marked_otherwise(plain, "one")
    else:
        assert disk.is_marked_otherwise(path, "two")
        assert disk.is_marked_otherwise(plain, "one")
