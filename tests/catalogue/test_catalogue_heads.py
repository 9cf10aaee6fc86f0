import os
import threading

import pytest
from catalogue_values import run

from ddfs import errors
from ddfs.catalogue.heads import HeadStore

CONTENT = "sha-256:" + "ab" * 32


def test_heads_are_kept_over_a_restart(tmp_path):
    HeadStore(tmp_path).put(CONTENT, b"QFI\xfb" + bytes(60))
    store = HeadStore(tmp_path)
    assert store.size(CONTENT) == 64
    assert store.read(CONTENT, 0, 4) == b"QFI\xfb"
    assert store.read(CONTENT, 62, 100) == b"\0\0"
    assert store.read(CONTENT, 64, 1) == b""
    store.put(CONTENT, b"other")
    assert store.read(CONTENT, 0, 100) == b"other"
    assert store.path(CONTENT).stat().st_mode & 0o777 == 0o600


def test_heads_that_are_not_there(tmp_path):
    store = HeadStore(tmp_path)
    assert (store.size(CONTENT), store.read(CONTENT, 0, 10)) == (0, b"")
    store.remove(CONTENT)
    store.put(CONTENT, b"")
    store.remove(CONTENT)
    assert not store.path(CONTENT).exists()


def test_heads_have_names_that_stay_in_their_directory(tmp_path):
    store = HeadStore(tmp_path)
    for content_id in (
        "../x",
        "sha-256:../../x",
        "a/b:00",
        "sha-256:",
        ":00",
        "sha-256:AB",
        "a:0\n",
    ):
        with pytest.raises(ValueError):
            store.path(content_id)
    assert store.path("pieces:" + "0f" * 32).parent == store.directory


def test_heads_a_crash_in_put_leaves_the_old_one_and_is_swept(tmp_path):
    store = HeadStore(tmp_path)
    store.put(CONTENT, b"old")
    (store.directory / ".fresh-crashed").write_bytes(b"half")
    again = HeadStore(tmp_path)
    assert again.read(CONTENT, 0, 10) == b"old"
    assert os.listdir(again.directory) == [again.path(CONTENT).name]


def test_heads_a_reader_sees_one_or_the_other(tmp_path):
    store = HeadStore(tmp_path)
    versions = [bytes([n]) * 65536 for n in (1, 2)]
    store.put(CONTENT, versions[0])
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            seen.append(store.read(CONTENT, 0, 65536))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        store.put(CONTENT, versions[number % 2])
    stop.set()
    reader.join()
    assert seen
    assert set(seen) <= set(versions)


def test_heads_on_a_full_or_read_only_disk(small):
    store = HeadStore(small)
    store.put(CONTENT, b"old")
    with pytest.raises(errors.CatalogueError, match=r"cannot store .* No space left .* try again"):
        store.put(CONTENT, bytes(4 * 2**20))
    assert store.read(CONTENT, 0, 10) == b"old"
    assert os.listdir(store.directory) == [store.path(CONTENT).name]
    run("mount", "-o", "remount,ro", str(small))
    with pytest.raises(errors.CatalogueError, match="Read-only file system"):
        store.put(CONTENT, b"new")
    assert store.read(CONTENT, 0, 10) == b"old"
