import os
import subprocess
import sys
import threading

import pytest
from primary_filesystems import mounted, run

from ddfs import errors
from ddfs.model import MiB
from ddfs.primary import kernel
from ddfs.primary.directory import DirectoryStorage

CONTENT = "sha-256:" + "ab" * 32
OTHER = "sha-256:" + "cd" * 32
NAME = "debian-12@abababababab.qcow2"


opened = []


@pytest.fixture(autouse=True)
def close_all():
    """Locks do not outlive their test."""
    yield
    while opened:
        opened.pop().close()


def storage_in(directory, name="pool"):
    pool = directory / name
    pool.mkdir(exist_ok=True)
    storage = DirectoryStorage("default", pool)
    storage.prepare()
    opened.append(storage)
    return storage


def partial_of(storage, content_id=CONTENT, data=b"bytes" * 1000):
    path = storage.partial_path(content_id)
    path.write_bytes(data)
    os.chmod(path, 0o600)
    return path


def test_directory_partial_files_lie_beside_the_pool_where_a_rename_works(small):
    storage = storage_in(small)
    assert storage.partial_dir == small / ".ddfs-pool"
    assert os.stat(storage.partial_dir).st_mode & 0o777 == 0o700
    assert os.listdir(small / "pool") == []
    assert os.listdir(storage.partial_dir) == ["lock"]


def test_directory_a_bind_mount_is_found_by_trying(small):
    for name in ("real", "pool"):
        (small / name).mkdir()
    run("mount", "--bind", str(small / "real"), str(small / "pool"))
    try:
        assert os.stat(small / "pool").st_dev == os.stat(small).st_dev
        storage = storage_in(small)
        assert storage.partial_dir == small / "pool" / ".ddfs"
        assert not (small / ".ddfs-pool").exists()
        published = storage.publish(partial_of(storage), NAME)
        assert storage.is_intact(published)
        storage.close()
    finally:
        run("umount", "-l", str(small / "pool"))


def test_directory_that_is_the_root_of_a_file_system(file_system):
    storage = storage_in(file_system.parent, "fs")
    assert storage.partial_dir == file_system / ".ddfs"
    assert not (file_system.parent / ".ddfs-fs").exists()


def test_directory_does_not_use_a_place_that_somebody_planted(small):
    (small / "elsewhere").mkdir()
    (small / ".ddfs-pool").symlink_to(small / "elsewhere")
    assert storage_in(small).partial_dir == small / "pool" / ".ddfs"
    os.unlink(small / ".ddfs-pool")
    (small / ".ddfs-pool").mkdir()
    os.chown(small / ".ddfs-pool", 12345, 12345)
    (small / "pool" / ".ddfs" / "lock").unlink()
    assert storage_in(small).partial_dir == small / "pool" / ".ddfs"


def test_directory_missing_or_not_a_directory_or_read_only(small):
    with pytest.raises(errors.StorageError, match=r"none does not exist; make it, or set another"):
        DirectoryStorage("default", small / "none").prepare()
    (small / "file").write_text("")
    with pytest.raises(errors.StorageError, match="file is no directory"):
        DirectoryStorage("default", small / "file").prepare()
    (small / "pool").mkdir()
    run("mount", "-o", "remount,ro", str(small))
    with pytest.raises(errors.StorageError, match="cannot be written to: Read-only file system"):
        DirectoryStorage("default", small / "pool").prepare()


def test_directory_second_owner_is_told_who_the_first_is(small):
    (small / "pool").mkdir()
    program = (
        "import sys, pathlib\n"
        "from ddfs.primary.directory import DirectoryStorage\n"
        "DirectoryStorage('default', pathlib.Path(sys.argv[1])).prepare()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(small / "pool")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with first:
        assert first.stdout.readline() == b"ready\n"
        second = DirectoryStorage("default", small / "pool")
        with pytest.raises(errors.AlreadyRunningError, match=rf"process {first.pid}\)"):
            second.prepare()
        first.kill()
        first.wait()
    second.prepare()
    second.close()


def test_directory_published_file_is_protected(file_system):
    storage = storage_in(file_system)
    published = storage.publish(partial_of(storage), NAME)
    path = file_system / "pool" / NAME
    assert published.path == str(path)
    assert path.read_bytes() == b"bytes" * 1000
    assert os.stat(path).st_mode & 0o7777 == 0o444
    assert not storage.partial_path(CONTENT).exists()
    assert storage.is_intact(published)
    if file_system.joinpath("..", "image").exists():  # lsattr knows no tmpfs
        listed = subprocess.run(["lsattr", str(path)], capture_output=True, text=True, check=True)
        assert "i" in listed.stdout.split()[0]
    with open(path, "rb") as file:
        assert kernel.is_immutable(file.fileno())
    for spoil in (os.unlink, lambda p: os.truncate(p, 0), lambda p: os.open(p, os.O_RDWR)):
        with pytest.raises(PermissionError):
            spoil(path)
    with pytest.raises(PermissionError):
        os.rename(path, path.with_name("away"))
    assert storage.is_intact(published)


def test_directory_purge_deletes_what_is_ours_and_nothing_else(file_system):
    storage = storage_in(file_system)
    published = storage.publish(partial_of(storage), NAME)
    storage.purge(published)
    assert os.listdir(file_system / "pool") == []
    storage.purge(published)

    (file_system / "pool" / NAME).write_bytes(b"bytes" * 1000)
    assert not storage.is_intact(published)
    with pytest.raises(errors.StorageError, match="not the file that ddfs put there"):
        storage.purge(published)
    os.unlink(published.path)
    (file_system / "target").write_bytes(b"")
    os.symlink(file_system / "target", published.path)
    with pytest.raises(errors.StorageError, match="not the file that ddfs put there"):
        storage.purge(published)
    assert os.path.lexists(published.path)


def test_directory_intact_looks_at_inode_size_time_and_never_through_links(small):
    storage = storage_in(small)
    published = storage.publish(partial_of(storage), NAME)
    path = small / "pool" / NAME
    os.chown(path.parent, 1, 1)  # libvirt changes owners; only the file itself matters
    assert storage.is_intact(published)
    with open(path, "rb") as file:
        kernel.set_immutable(file.fileno(), False)
    os.chown(path, 64055, 64055)
    assert storage.is_intact(published)
    os.utime(path, ns=(0, published.mtime_ns + 1))
    assert not storage.is_intact(published)
    os.utime(path, ns=(0, published.mtime_ns))
    assert storage.is_intact(published)
    os.rename(path, small / "pool" / "moved")
    os.symlink("moved", path)
    assert not storage.is_intact(published)
    assert storage.identify(path) is None
    os.unlink(path)
    assert not storage.is_intact(published)


def test_directory_device_number_may_change_at_a_reboot(tmp_path):
    with mounted("ext4", tmp_path) as target:
        storage = storage_in(target)
        published = storage.publish(partial_of(storage), NAME)
        storage.close()
        run("umount", str(target))
        run("mount", "-o", "loop", str(tmp_path / "image"), str(target))
        renumbered = published.__class__(
            published.path, published.device + 1000, published.inode, published.size,
            published.mtime_ns,
        )  # fmt: skip
        again = DirectoryStorage("default", target / "pool")
        assert not again.is_intact(renumbered)  # not prepared: it knows no device yet
        again.prepare()
        assert again.is_intact(renumbered)
        again.close()


def test_directory_a_foreign_file_of_the_name_is_never_overwritten(file_system):
    storage = storage_in(file_system)
    taken = file_system / "pool" / NAME
    taken.write_bytes(b"somebody's work")
    partial = partial_of(storage)
    for _ in range(2):
        with pytest.raises(errors.NameTakenError, match="was not put there by ddfs; move it away"):
            storage.publish(partial, NAME)
        assert taken.read_bytes() == b"somebody's work"
        assert partial.read_bytes() == b"bytes" * 1000
    os.unlink(taken)
    os.symlink("nowhere", taken)
    with pytest.raises(errors.NameTakenError):
        storage.publish(partial, NAME)
    os.unlink(taken)
    assert storage.is_intact(storage.publish(partial, NAME))


def test_directory_names_that_would_leave_the_directory(small):
    storage = storage_in(small)
    partial = partial_of(storage)
    for name in ("", ".", "..", "../x", "a/b", "a\0b"):
        with pytest.raises(ValueError):
            storage.publish(partial, name)
    for content in ("../../etc/passwd", "sha-256:../x", "sha-256:", "SHA:ab", "a:b:c", ""):
        with pytest.raises(ValueError):
            storage.partial_path(content)
    with pytest.raises(ValueError):
        storage.publish(small / "pool" / "x", NAME)


def test_directory_discard_removes_what_a_fetch_leaves(small):
    storage = storage_in(small)
    storage.publish(partial_of(storage), NAME)
    storage.journal_path(CONTENT).write_bytes(b"journal")
    keep = partial_of(storage, OTHER)
    storage.discard(CONTENT)
    storage.discard(CONTENT)
    assert sorted(os.listdir(storage.partial_dir)) == sorted(["lock", keep.name])


def test_directory_reserves_no_byte_twice(small):
    storage = storage_in(small)
    storage.reserve(CONTENT, 20 * MiB)
    with pytest.raises(errors.StorageFullError, match=r"MiB more are needed \(20 MiB in all"):
        storage.reserve(OTHER, 20 * MiB)
    # What the first has written is taken from both sides.
    partial_of(storage, data=bytes(15 * MiB))
    with pytest.raises(errors.StorageFullError):
        storage.reserve(OTHER, 12 * MiB)
    storage.reserve(OTHER, 10 * MiB)
    storage.reserve(CONTENT, 20 * MiB)
    storage.release(CONTENT)
    storage.reserve(OTHER, 15 * MiB)
    total, free = storage.figures()
    assert total == 32 * MiB
    assert 16 * MiB <= free <= 17 * MiB


def test_directory_reserves_from_many_threads(small):
    storage = storage_in(small)
    granted = []

    def ask(number):
        try:
            storage.reserve(f"sha-256:{number:064x}", 4 * MiB)
        except errors.StorageFullError:
            return
        granted.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 7  # 32 MiB, of which some hundred KiB stay free


def test_directory_on_a_full_disk_says_so_and_loses_nothing(file_system):
    storage = storage_in(file_system)
    partial = partial_of(storage)
    with open(file_system / "ballast", "wb", buffering=0) as ballast:
        block = bytes(MiB)
        for step in (MiB, 4096, 1):
            try:
                while True:
                    ballast.write(block[:step])
            except OSError:
                continue
    with pytest.raises(errors.StorageFullError, match="free some room"):
        storage.reserve(OTHER, MiB)
    # The mark takes a block, which no kind of these has left.
    with pytest.raises(errors.StorageFullError, match="free some room"):
        storage.publish(partial, NAME)
    assert partial.read_bytes() == b"bytes" * 1000
    os.unlink(file_system / "ballast")
    published = storage.publish(partial, NAME)
    assert storage.is_intact(published)
    storage.close()
    again = DirectoryStorage("default", file_system / "pool")
    again.prepare()
    again.close()
