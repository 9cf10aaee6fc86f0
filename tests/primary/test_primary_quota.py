"""Quota and keep_free on real directories."""

import os
import threading

import pytest
from test_primary_directory import CONTENT, NAME, OTHER, close_all, opened, partial_of

from ddfs import errors
from ddfs.model import MiB
from ddfs.primary.directory import DirectoryStorage

__all__ = ["close_all"]


def storage_in(directory, *, quota=None, keep_free=None):
    pool = directory / "pool"
    pool.mkdir(exist_ok=True)
    storage = DirectoryStorage(
        "default",
        pool,
        quota=None if quota is None else lambda _total: quota,
        keep_free=None if keep_free is None else lambda _total: keep_free,
    )
    storage.prepare()
    opened.append(storage)
    return storage


def test_quota_counts_published_files_promises_and_leftovers(small):
    storage = storage_in(small, quota=10 * MiB)
    storage.reserve(CONTENT, 4 * MiB)
    published = storage.publish(partial_of(storage, data=bytes(4 * MiB)), NAME)
    assert storage.room().held == 4 * MiB
    # An interrupted fetch of something else, which nobody goes on with.
    partial_of(storage, OTHER, data=bytes(2 * MiB))
    assert storage.leftovers() == {OTHER: 2 * MiB}
    third = "sha-256:" + "ef" * 32
    storage.reserve(third, 4 * MiB)
    assert storage.room().held == 10 * MiB
    with pytest.raises(errors.StorageFullError, match="over the quota of 10 MiB") as caught:
        storage.reserve(third, 4 * MiB + 1)
    assert caught.value.missing == 1
    assert "\n" not in str(caught.value)
    # Going on with the leftover takes only its rest.
    storage.release(third)
    storage.reserve(OTHER, 6 * MiB)
    assert storage.leftovers() == {}
    storage.release(OTHER)
    storage.purge(published)
    assert storage.room().held == 2 * MiB


def test_quota_knows_what_an_earlier_daemon_published(small):
    first = storage_in(small, quota=10 * MiB)
    published = first.publish(partial_of(first, data=bytes(8 * MiB)), NAME)
    first.close()
    again = storage_in(small, quota=10 * MiB)
    assert again.is_intact(published)
    with pytest.raises(errors.StorageFullError, match="quota"):
        again.reserve(OTHER, 3 * MiB)
    os.system(f"chattr -i {published.path} 2>/dev/null")
    os.unlink(published.path)
    assert not again.is_intact(published)
    again.reserve(OTHER, 3 * MiB)


def test_quota_is_not_broken_by_many_threads(small):
    storage = storage_in(small, quota=10 * MiB)
    granted = []

    def ask(number):
        try:
            storage.reserve(f"sha-256:{number:064x}", 3 * MiB)
        except errors.StorageFullError:
            return
        granted.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 3


def test_keep_free_is_of_the_file_system_whoever_fills_it(small):
    storage = storage_in(small, keep_free=20 * MiB)
    storage.reserve(CONTENT, 10 * MiB)
    storage.release(CONTENT)
    (small / "somebody else's").write_bytes(bytes(5 * MiB))
    with pytest.raises(errors.StorageFullError, match="20 MiB of them kept free"):
        storage.reserve(CONTENT, 10 * MiB)
    storage.reserve(CONTENT, 5 * MiB)


def test_quota_counts_what_is_adopted(small):
    storage = storage_in(small, quota=10 * MiB)
    storage.reserve(OTHER, 4 * MiB)
    image = storage.path / "by hand@abababababab.img"
    image.write_bytes(bytes(8 * MiB))
    with pytest.raises(errors.StorageFullError, match="8 MiB more would be 2 MiB over") as caught:
        storage.adopt(image.name)
    assert caught.value.missing == 2 * MiB
    assert os.stat(image).st_mode & 0o222
    storage.release(OTHER)
    published = storage.adopt(image.name)
    assert storage.room().held == 8 * MiB
    # Again, as after a crash.
    assert storage.adopt(image.name) == published
    storage.purge(published)
