"""Heads in the page cache: what is stored of them, and what libvirt's reads then cost."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyfuse3
import pytest
from fuse_driver import Driver, Reader, wait_for
from fuse_fake import HEAD, content

from ddfs import errors
from ddfs.fuse import inodes, keptheads
from ddfs.fuse.keptheads import BELIEVED_SECONDS, KEPT_BYTES, Head, KeptHeads
from ddfs.fuse.notices import Notices

SIZE = 20 * (1 << 20) + 12345
LIBVIRT_READS = 33280


class PageCache:
    """The kernel's, as far as it takes heads. It knows the inodes of rows below 100."""

    def __init__(self) -> None:
        self.stored: dict[int, bytes] = {}
        self.unknown = 0

    def notify_store(self, inode: int, offset: int, data: bytes) -> None:
        assert offset == 0
        self.unknown -= 1
        if self.unknown >= 0 or inode >= inodes.file_inode(100):
            raise FileNotFoundError(2, "no such inode")
        self.stored[inode] = bytes(data)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> PageCache:
    cache = PageCache()
    monkeypatch.setattr(pyfuse3, "notify_store", cache.notify_store)
    return cache


@pytest.fixture
def notices(cache: PageCache) -> Iterator[Notices]:
    notices = Notices("test")
    notices.start()
    yield notices
    notices.stop()
    assert notices.join(20)


@pytest.mark.parametrize("size", [1, 4096, KEPT_BYTES - 1, KEPT_BYTES, KEPT_BYTES + 1, HEAD, SIZE])
def test_what_libvirt_reads_is_stored_and_not_a_byte_behind_the_end(
    cache: PageCache, notices: Notices, size: int
) -> None:
    kept = KeptHeads(notices)
    assert not kept.is_needless(3)
    kept.store([Head(3, size, lambda length: content(3, 0, min(length, size, HEAD)))])
    assert kept.is_needless(3)
    wait_for(lambda: kept.has(3))
    assert kept.is_needless(3)
    assert cache.stored == {inodes.file_inode(3): content(3, 0, min(size, KEPT_BYTES))}


def test_what_the_kernel_is_about_to_know_is_tried_again(
    cache: PageCache, notices: Notices
) -> None:
    kept = KeptHeads(notices)
    cache.unknown = 2
    kept.store([whole(1), whole(2)])
    wait_for(lambda: kept.has(2))
    assert kept.has(1)


def whole(row: int) -> Head:
    return Head(row, SIZE, lambda length: content(row, 0, length))


def _broken(_length: int) -> bytes:
    raise errors.CatalogueError("the disk fails")


def test_what_cannot_be_stored_is_not_believed_to_be(cache: PageCache, notices: Notices) -> None:
    kept = KeptHeads(notices)
    heads = [
        Head(1, SIZE, lambda _length: content(1, 0, HEAD - 1)),  # too short for what comes after
        Head(2, 0, lambda _length: b""),
        Head(4, SIZE, _broken),
        whole(100),  # unknown to the kernel
    ]
    kept.store([*heads, whole(5)])
    wait_for(lambda: kept.has(5))
    assert cache.stored.keys() == {inodes.file_inode(5)}
    for row in (1, 2, 4, 100):
        assert not kept.is_needless(row)


def test_nothing_is_believed_for_ever(
    cache: PageCache, notices: Notices, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptHeads(notices)
    kept.store([whole(row) for row in (1, 2, 3)])
    wait_for(lambda: kept.has(3))
    kept.forget(2)
    assert [kept.has(row) for row in (1, 2, 3)] == [True, False, True]
    kept.forget_all()
    assert not any(kept.has(row) for row in (1, 2, 3))
    kept.store([whole(1)])
    wait_for(lambda: kept.has(1))
    now = keptheads.time.monotonic()
    monkeypatch.setattr(keptheads.time, "monotonic", lambda: now + BELIEVED_SECONDS)
    assert not kept.is_needless(1)


# --- with a kernel -----------------------------------------------------------------------

LIST = "os.listdir(os.path.dirname(path))\n"
PROBE = "fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)\n"
READ = (
    "import hashlib\n"
    "data = b''.join(os.pread(fd, n, i * 8192) for i, n in enumerate((8192, 8192, 8192, 8704)))\n"
    "print(hashlib.sha256(data).hexdigest(), flush=True)\n"
)
DROP = "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"


@pytest.fixture
def libvirtd(tmp_path: Path) -> str:
    """A program of that name; it is Python."""
    return shutil.copy(os.path.realpath(sys.executable), tmp_path / "libvirtd")


def headed(row: int) -> str:
    return hashlib.sha256(content(row, 0, LIBVIRT_READS)).hexdigest()


def listed(pool: Driver, libvirtd: str) -> str:
    """The path of template 1, which has been listed by libvirt, and whose bytes are not here."""
    pool("add", 1, "a.img", SIZE)
    pool("stall", 1)
    assert Reader(pool.path("a.img"), LIST, libvirtd).result() == ""
    wait_for(lambda: pool("kept", 1))
    return pool.path("a.img")


def test_libvirt_reads_a_head_without_asking(pool: Driver, libvirtd: str) -> None:
    path = listed(pool, libvirtd)
    assert Reader(path, PROBE + READ, libvirtd).result().split() == [headed(1)]
    requests = pool("requests")
    assert requests["open"] == 1
    assert "read" not in requests
    assert pool("demands", 1) == 0


def test_what_the_kernel_has_dropped_is_read_again_and_no_more(pool: Driver, libvirtd: str) -> None:
    path = listed(pool, libvirtd)
    code = PROBE + DROP + READ + READ
    assert Reader(path, code, libvirtd).result().split() == [headed(1)] * 2
    assert 0 < pool("requests")["read"] < 8
    assert not pool("kept", 1)
    assert pool("demands", 1) == pool("reads", 1) == 0
    # Whatever the kernel tried to read ahead is read when it is asked for.
    pool("release", 1)
    code = "import hashlib; print(hashlib.sha256(open(path, 'rb').read(1000000)).hexdigest())"
    expected = hashlib.sha256(content(1, 0, 1_000_000)).hexdigest()
    assert Reader(path, code).result().strip() == expected


def test_other_readers_get_what_is_kept_and_wait_for_the_rest(pool: Driver, libvirtd: str) -> None:
    path = listed(pool, libvirtd)
    code = "fd = os.open(path, os.O_RDONLY)\n" + READ + "os.pread(fd, 10, 70000); print('more')"
    reader = Reader(path, code)
    wait_for(lambda: pool("waiting"))
    assert pool("demands", 1) == 1
    assert reader.is_running()
    pool("release", 1)
    assert reader.result().split() == [headed(1), "more"]


def test_libvirt_does_not_wait_for_pages_that_a_reader_has_locked(
    pool: Driver, libvirtd: str
) -> None:
    path = listed(pool, libvirtd)
    reader = Reader(path, "fd = os.open(path, os.O_RDONLY)\n" + DROP + "os.read(fd, 512)")
    wait_for(lambda: pool("waiting"))
    assert Reader(path, PROBE + READ, libvirtd).result().split() == [headed(1)]
    assert reader.is_running()
    pool("release", 1)
    assert reader.result() == ""


def test_no_head_is_stored_that_a_reader_has_locked(pool: Driver, libvirtd: str) -> None:
    for row in (1, 2):
        pool("add", row, f"{row}.img", SIZE)
    pool("stall", 1)
    reader = Reader(pool.path("1.img"), "os.read(os.open(path, os.O_RDONLY), 512)")
    wait_for(lambda: pool("waiting"))
    assert Reader(pool.path("1.img"), LIST, libvirtd).result() == ""
    wait_for(lambda: pool("kept", 2))
    assert not pool("storing", 1)
    assert reader.is_running()


def test_nothing_is_kept_that_was_not_verified_or_is_listed_by_others(
    pool: Driver, libvirtd: str
) -> None:
    pool("add", 1, "a.img", SIZE)
    pool("add", 2, "b.img", SIZE)
    pool("doubt", 1)
    pool("stall", 1)
    path = pool.path("a.img")
    assert Reader(path, LIST).result() == ""
    assert not pool("storing", 2)
    assert Reader(path, LIST, libvirtd).result() == ""
    wait_for(lambda: pool("kept", 2))
    assert not pool("kept", 1)
    assert Reader(path, PROBE + READ, libvirtd).result().split() == [headed(1)]
    reader = Reader(path, "os.read(os.open(path, os.O_RDONLY), 512)")
    wait_for(lambda: pool("waiting"))
    assert reader.is_running()
    pool("release", 1)
    assert reader.result() == ""
