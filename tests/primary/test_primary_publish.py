import errno
import os

import pytest

from ddfs import errors
from ddfs.primary import kernel
from ddfs.primary.directory import DirectoryStorage
from ddfs.primary.publish import MARK_SUFFIX, Publication

CONTENT = "sha-256:" + "ab" * 32
NAME = "debian-12@abababababab.qcow2"
DATA = b"bytes" * 1000
STEPS = ("seal", "vow", "move", "finish")


@pytest.fixture
def storage(file_system):
    (file_system / "pool").mkdir()
    storage = DirectoryStorage("default", file_system / "pool")
    storage.prepare()
    storage.partial_path(CONTENT).write_bytes(DATA)
    yield storage
    storage.close()


def restarted(storage):
    """As the next daemon finds it."""
    storage.close()
    again = DirectoryStorage(storage.name, storage.path)
    again.prepare()
    return again


@pytest.mark.parametrize("done", range(len(STEPS) + 1))
def test_publish_goes_on_after_a_crash_behind_every_step(storage, done):
    publication = Publication(storage.partial_path(CONTENT), storage.path / NAME)
    for step in STEPS[:done]:
        getattr(publication, step)()
    again = restarted(storage)
    published = again.publish(again.partial_path(CONTENT), NAME)
    assert published.path == str(storage.path / NAME)
    assert (storage.path / NAME).read_bytes() == DATA
    assert os.stat(published.path).st_mode & 0o777 == 0o444
    assert again.is_intact(published)
    with open(published.path, "rb") as file:
        assert kernel.is_immutable(file.fileno())
    # Between here and the catalogue's row it may crash again.
    third = restarted(again)
    assert third.publish(third.partial_path(CONTENT), NAME) == published
    third.discard(CONTENT)
    with pytest.raises(errors.StorageError, match="has to be fetched again"):
        third.publish(third.partial_path(CONTENT), NAME)
    assert third.is_intact(published)
    third.close()


@pytest.mark.parametrize("done", range(len(STEPS) + 1))
def test_finish_publishing_finds_what_had_its_name(storage, done):
    publication = Publication(storage.partial_path(CONTENT), storage.path / NAME)
    for step in STEPS[:done]:
        getattr(publication, step)()
    again = restarted(storage)
    published = again.finish_publishing(CONTENT)
    if done < STEPS.index("move") + 1:
        assert published is None
        assert again.partial_path(CONTENT).read_bytes() == DATA
    else:
        assert published is not None
        assert again.is_intact(published)
        assert again.finish_publishing(CONTENT) == published
    again.discard(CONTENT)
    assert again.finish_publishing(CONTENT) is None
    again.close()


def test_finish_publishing_between_link_and_unlink_and_with_a_foreign_file(storage):
    partial = storage.partial_path(CONTENT)
    publication = Publication(partial, storage.path / NAME)
    publication.seal()
    publication.vow()
    (storage.path / NAME).write_bytes(DATA)
    assert storage.finish_publishing(CONTENT) is None
    os.unlink(storage.path / NAME)
    os.link(partial, storage.path / NAME)
    published = storage.finish_publishing(CONTENT)
    assert storage.is_intact(published)
    assert not partial.exists()
    assert os.stat(published.path).st_nlink == 1


def test_adopt_protects_a_file_that_is_there(storage):
    path = storage.path / NAME
    path.write_bytes(DATA)
    before = os.stat(path)
    published = storage.adopt(NAME)
    assert (published.inode, published.mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert storage.adopt(NAME) == published
    assert os.stat(path).st_mode & 0o777 == 0o444
    with pytest.raises(PermissionError):
        os.unlink(path)
    storage.purge(published)
    for make in (path.mkdir, lambda: path.symlink_to("x")):
        make()
        with pytest.raises(errors.StorageError):
            storage.adopt(NAME)
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(errors.StorageError, match="No such file"):
        storage.adopt(NAME)
    with pytest.raises(ValueError):
        storage.adopt("../x")


def test_publish_after_a_crash_keeps_the_name_that_was_given_first(storage):
    publication = Publication(storage.partial_path(CONTENT), storage.path / NAME)
    for step in STEPS[:3]:
        getattr(publication, step)()
    published = storage.publish(storage.partial_path(CONTENT), "other@abababababab.qcow2")
    assert published.path == str(storage.path / NAME)
    assert os.listdir(storage.path) == [NAME]


def test_publish_where_a_crash_fell_between_link_and_unlink(storage):
    publication = Publication(storage.partial_path(CONTENT), storage.path / NAME)
    publication.seal()
    publication.vow()
    os.link(storage.partial_path(CONTENT), storage.path / NAME)
    published = storage.publish(storage.partial_path(CONTENT), NAME)
    assert storage.is_intact(published)
    assert os.stat(published.path).st_nlink == 1


def test_publish_does_not_take_a_foreign_file_for_its_own_after_a_crash(storage):
    publication = Publication(storage.partial_path(CONTENT), storage.path / NAME)
    for step in STEPS[:3]:
        getattr(publication, step)()
    os.unlink(storage.path / NAME)
    (storage.path / NAME).write_bytes(DATA)
    os.utime(storage.path / NAME, ns=(1, 1))
    with pytest.raises(errors.StorageError, match="has to be fetched again"):
        storage.publish(storage.partial_path(CONTENT), NAME)
    assert os.stat(storage.path / NAME).st_mtime_ns == 1


def test_publish_with_a_damaged_mark_starts_over_or_says_so(storage):
    mark = storage.partial_path(CONTENT).with_suffix(MARK_SUFFIX)
    mark.write_bytes(b'{"path": 1')
    assert storage.is_intact(storage.publish(storage.partial_path(CONTENT), NAME))
    mark.write_bytes(b"\xff\xfe[]")
    with pytest.raises(errors.StorageError, match="has to be fetched again"):
        storage.publish(storage.partial_path(CONTENT), NAME)


def test_move_replaces_nothing_with_and_without_renameat2(small):
    def without(source, target):
        raise OSError(errno.EINVAL, "no such flag here")

    for rename in (kernel.rename_no_replace, without):
        (small / "new").write_text("new")
        (small / "old").write_text("old")
        with pytest.raises(FileExistsError):
            kernel.move_no_replace(small / "new", small / "old", rename)
        assert (small / "old").read_text() == "old"
        os.unlink(small / "old")
        kernel.move_no_replace(small / "new", small / "old", rename)
        assert (small / "old").read_text() == "new"
        assert not (small / "new").exists()
