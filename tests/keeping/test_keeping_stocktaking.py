"""Disk and catalogue compared, on a real directory."""

import os
from pathlib import Path

import pytest

from ddfs.keeping.stocktaking import Stocktaking
from ddfs.model import ImageFormat, MiB, Template
from ddfs.primary.directory import DirectoryStorage

KNOWN = "sha-256:" + "ab" * 32
UNKNOWN = "sha-256:" + "cd" * 32


class Host:
    """As much of a spool and of templates as is asked."""

    def __init__(self) -> None:
        self.files = []
        self.fetching: set[str] = set()
        self.confirmed: list[str] = []
        self.templates = [
            Template(
                1, "a", ImageFormat.RAW, KNOWN, MiB, None, "https://x.example/a", 0.0, True, True
            )
        ]

    def stored(self):
        return list(self.files)

    def is_fetching(self, content_id):
        return content_id in self.fetching

    async def confirm_published(self, content_id):
        self.confirmed.append(content_id)

    def all(self):
        return self.templates


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "pool").mkdir()
    storage = DirectoryStorage("default", tmp_path / "pool")
    storage.prepare()
    yield storage
    for path in storage.path.iterdir():
        os.system(f"chattr -i '{path}' 2>/dev/null")
    storage.close()


def publish(host: Host, storage: DirectoryStorage) -> Path:
    partial = storage.partial_path(KNOWN)
    partial.write_bytes(b"image")
    file = storage.publish(partial, host.templates[0].published_name)
    storage.discard(KNOWN)
    host.files.append((KNOWN, "default", file))
    return Path(file.path)


async def test_nothing_is_said_of_what_is_in_order(storage):
    host = Host()
    publish(host, storage)
    (storage.path / "vm1.qcow2").write_bytes(b"a disk")
    assert await Stocktaking(host, host, [storage]).compare(fix=True) == []
    assert host.confirmed == []


async def test_a_file_deleted_by_hand_is_named_and_mended(storage):
    host = Host()
    path = publish(host, storage)
    storage.purge(host.files[0][2])
    stocktaking = Stocktaking(host, host, [storage])
    [difference] = await stocktaking.compare(fix=False)
    assert (difference.subject, difference.mended) == (str(path), False)
    assert "--fix" in difference.remedy
    assert host.confirmed == []
    [difference] = await stocktaking.compare(fix=True)
    assert difference.mended
    assert host.confirmed == [KNOWN]


async def test_an_orphaned_partial_goes_and_that_of_a_template_stays(storage):
    host = Host()
    for content_id in (KNOWN, UNKNOWN):
        storage.partial_path(content_id).write_bytes(bytes(MiB))
    stocktaking = Stocktaking(host, host, [storage])
    [difference] = await stocktaking.compare(fix=False)
    assert UNKNOWN in difference.subject
    assert storage.partial_path(UNKNOWN).exists()
    host.fetching.add(UNKNOWN)
    assert await stocktaking.compare(fix=True) == []
    host.fetching.clear()
    [difference] = await stocktaking.compare(fix=True)
    assert difference.mended
    assert not storage.partial_path(UNKNOWN).exists()
    assert storage.partial_path(KNOWN).exists()


async def test_a_file_without_a_template_is_named_and_never_touched(storage):
    host = Host()
    stranger = storage.path / "old@0123456789ab.qcow2"
    stranger.write_bytes(b"x")
    (storage.path / host.templates[0].published_name).write_bytes(bytes(MiB))  # not adopted yet
    [difference] = await Stocktaking(host, host, [storage]).compare(fix=True)
    assert (difference.subject, difference.mended) == (str(stranger), False)
    assert stranger.exists()


@pytest.mark.parametrize("is_directory", [False, True])
async def test_what_cannot_be_the_template_whose_name_it_has_is_named(storage, is_directory):
    host = Host()
    in_the_way = storage.path / host.templates[0].published_name
    if is_directory:
        in_the_way.mkdir()
    else:
        in_the_way.write_bytes(b"cut off")
    [difference] = await Stocktaking(host, host, [storage]).compare(fix=True)
    assert (difference.subject, difference.mended) == (str(in_the_way), False)
    assert "move it away" in difference.remedy
    assert in_the_way.exists()


async def test_a_directory_that_is_gone_is_one_line(storage):
    host = Host()
    for path in list(storage.path.iterdir()):
        path.unlink()
    storage.path.rmdir()
    [difference] = await Stocktaking(host, host, [storage]).compare(fix=True)
    assert "No such file" in difference.problem
    assert "\n" not in difference.problem
    storage.path.mkdir()
