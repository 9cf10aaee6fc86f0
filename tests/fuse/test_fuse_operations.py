"""The handlers, called directly."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
from fuse_fake import HEAD, MTIME_NS, FakeView, content

from ddfs import errors
from ddfs.fuse import attributes, inodes, operations
from ddfs.fuse.inodes import Handle
from ddfs.fuse.operations import REFUSED, TemplateOperations
from ddfs.fuse.requesters import Requester
from ddfs.fuse.view import Entry

CTX = SimpleNamespace(pid=1, uid=0, gid=0, umask=0)
SIZE = 3 * HEAD + 5


class Mounted:
    """Handlers over a view with template 1, ``a.img``."""

    def __init__(self) -> None:
        self.view = FakeView()
        self.view.put(Entry(1, "a.img", SIZE, MTIME_NS, None))
        self.requester = Requester.ANYBODY
        self.stale: set[int] = set()
        self.demanded: list[int] = []
        self.handlers = TemplateOperations(
            self.view,
            is_stale=self.stale.__contains__,
            on_demand=self.demanded.append,
            identify=lambda _pid: self.requester,
        )

    def publish(self) -> None:
        self.view.put(Entry(1, "a.img", SIZE, MTIME_NS, "/pool/a@1.img"))

    async def open(self, flags: int = 0, inode: int = 18) -> Any:
        return await self.handlers.open(inode, flags, CTX)  # type: ignore[arg-type]

    async def read(self, info: Any, offset: int, length: int) -> bytes:
        return await self.handlers.read(info.fh, offset, length)


@pytest.fixture
def mounted() -> Mounted:
    return Mounted()


async def fails(code: int, handler: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handler(*arguments)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code]


# --- names and attributes ----------------------------------------------------------------


async def test_lookup_of_what_is_there_and_what_is_not(mounted: Mounted) -> None:
    handlers = mounted.handlers
    directory = await handlers.lookup(inodes.ROOT, b"templates", CTX)
    assert (directory.st_ino, directory.st_mode) == (2, stat.S_IFDIR | 0o555)
    found = await handlers.lookup(2, b"a.img", CTX)
    assert (found.st_ino, found.st_mode) == (18, stat.S_IFREG | 0o444)
    assert (found.st_size, found.st_mtime_ns) == (SIZE, MTIME_NS)
    await fails(errno.ENOENT, handlers.lookup, 2, b"b.img", CTX)
    await fails(errno.ENOENT, handlers.lookup, 2, b"\xff", CTX)
    await fails(errno.ENOENT, handlers.lookup, inodes.ROOT, b"a.img", CTX)


async def test_attributes_are_kept_long_unless_a_fetch_runs(mounted: Mounted) -> None:
    settled = await mounted.handlers.getattr(18, CTX)
    assert settled.attr_timeout == settled.entry_timeout == attributes.SETTLED_SECONDS
    mounted.view.fetching.add(1)
    changing = await mounted.handlers.getattr(18, CTX)
    assert changing.attr_timeout == attributes.FETCHING_SECONDS
    assert changing.entry_timeout == attributes.SETTLED_SECONDS


@pytest.mark.parametrize(
    ("size", "here", "blocks"),
    [(0, 0, 0), (1, 0, 8), (10**6, 0, 8), (10**6, 4096, 8), (10**6, 4097, 9), (10**6, 10**6, 1954)],
)
def test_a_file_that_is_not_empty_has_eight_blocks_at_least(
    size: int, here: int, blocks: int
) -> None:
    assert attributes.sectors(size, here) == blocks


async def test_published_template_is_a_symlink_of_another_inode(mounted: Mounted) -> None:
    mounted.publish()
    found = await mounted.handlers.lookup(2, b"a.img", CTX)
    assert found.st_ino == inodes.link_inode(1)
    assert stat.S_ISLNK(found.st_mode)
    assert await mounted.handlers.readlink(found.st_ino, CTX) == b"/pool/a@1.img"
    assert mounted.view.followed == [1]
    assert found.st_size == len("/pool/a@1.img")
    # Who has the old file open still sees a file.
    assert stat.S_ISREG((await mounted.handlers.getattr(18, CTX)).st_mode)


async def test_inodes_that_are_no_more_are_stale(mounted: Mounted) -> None:
    handlers = mounted.handlers
    await fails(errno.ESTALE, handlers.getattr, inodes.link_inode(1), CTX)
    await fails(errno.ESTALE, handlers.readlink, inodes.link_inode(1), CTX)
    await fails(errno.ESTALE, handlers.getattr, inodes.file_inode(9), CTX)
    await fails(errno.ESTALE, mounted.open, 0, inodes.file_inode(9))
    await fails(errno.ESTALE, mounted.open, 0, 3)


async def test_extended_attributes(mounted: Mounted) -> None:
    handlers = mounted.handlers
    assert await handlers.listxattr(18, CTX) == [b"user.ddfs.state", b"user.ddfs.row"]
    assert await handlers.getxattr(18, b"user.ddfs.row", CTX) == b"1"
    await fails(errno.ENODATA, handlers.getxattr, 18, b"user.ddfs.none", CTX)
    await fails(errno.ENODATA, handlers.getxattr, 18, b"user.other", CTX)
    await fails(errno.ENODATA, handlers.getxattr, 2, b"user.ddfs.row", CTX)
    for name in (b"security.selinux", b"trusted.libvirt.security.dac", b"system.posix_acl_access"):
        await fails(errno.EOPNOTSUPP, handlers.getxattr, 18, name, CTX)
    assert list(await handlers.listxattr(2, CTX)) == []


async def test_statfs_is_primary_storage(mounted: Mounted) -> None:
    figures = await mounted.handlers.statfs(CTX)
    assert figures.f_blocks * figures.f_frsize == 1 << 40
    assert figures.f_bavail * figures.f_frsize == 3 << 30
    assert figures.f_namemax == 255


@pytest.mark.parametrize("kind", REFUSED)
async def test_nobody_writes(mounted: Mounted, kind: str) -> None:
    await fails(errno.EROFS, getattr(mounted.handlers, kind), 18, b"x", CTX)
    assert mounted.handlers.requests[kind] == 1


def test_every_request_that_would_write_is_refused() -> None:
    inherited = vars(pyfuse3.Operations)
    writing = {"setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link"}
    writing |= {"write", "setxattr", "removexattr", "create"}
    assert writing <= set(inherited)
    assert set(REFUSED) == writing


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_APPEND | os.O_WRONLY])
async def test_opening_for_write_is_refused_and_no_demand(mounted: Mounted, flags: int) -> None:
    await fails(errno.EROFS, mounted.open, flags)
    await fails(errno.EROFS, mounted.open, flags | os.O_NONBLOCK)
    assert not mounted.view.demands


# --- opening -----------------------------------------------------------------------------


async def test_a_plain_open_is_demand_and_is_told(mounted: Mounted) -> None:
    info = await mounted.open()
    assert mounted.view.demands == {1: 1}
    assert mounted.demanded == [1]
    assert not info.direct_io
    assert info.keep_cache
    assert Handle.unpack(info.fh) == Handle(18)


async def test_a_probe_is_none(mounted: Mounted) -> None:
    info = await mounted.open(os.O_NONBLOCK)
    assert not mounted.view.demands
    assert info.direct_io
    assert Handle.unpack(info.fh) == Handle(18, is_probe=True)


async def test_a_published_template_needs_no_demand(mounted: Mounted) -> None:
    mounted.publish()
    mounted.requester = Requester.QEMU
    await mounted.open()
    assert not mounted.view.demands


async def test_qemu_is_sent_away_and_the_fetch_starts(mounted: Mounted) -> None:
    mounted.requester = Requester.QEMU
    await fails(errno.EAGAIN, mounted.open)
    assert mounted.view.demands == {1: 1}


async def test_libvirt_waits_two_seconds(
    mounted: Mounted, autojump_clock: trio.testing.MockClock
) -> None:
    mounted.requester = Requester.LIBVIRT
    mounted.view.stalled.add(1)
    info = await mounted.open()
    assert info.direct_io
    started = trio.current_time()
    await fails(errno.EIO, mounted.read, info, 0, 100)
    assert trio.current_time() - started == pytest.approx(2.0)
    mounted.view.stalled.clear()
    assert await mounted.read(info, 0, 100) == content(1, 0, 100)


async def test_a_probe_of_a_template_without_head_is_passed_over(mounted: Mounted) -> None:
    mounted.view.headless.add(1)
    await fails(errno.ENXIO, mounted.open, os.O_NONBLOCK)
    mounted.publish()
    await mounted.open(os.O_NONBLOCK)


async def test_an_open_that_meets_a_stale_name_looks_again(mounted: Mounted) -> None:
    mounted.stale.add(18)
    await mounted.open()  # not published: the name may be looked up, the file is the same
    mounted.publish()
    await fails(errno.ESTALE, mounted.open)
    await fails(errno.ESTALE, mounted.open, os.O_NONBLOCK)
    mounted.stale.clear()
    await mounted.open()


# --- reading -----------------------------------------------------------------------------


async def test_a_probe_reads_the_head_without_demand(mounted: Mounted) -> None:
    mounted.view.stalled.add(1)
    info = await mounted.open(os.O_NONBLOCK)
    assert await mounted.read(info, 0, 33280) == content(1, 0, 33280)
    assert await mounted.read(info, HEAD - 10, 10) == content(1, HEAD - 10, 10)
    assert not mounted.view.demands
    assert not mounted.view.reads


async def test_beyond_the_head_a_probe_is_a_reader(
    mounted: Mounted, autojump_clock: trio.testing.MockClock
) -> None:
    mounted.view.stalled.add(1)
    info = await mounted.open(os.O_NONBLOCK)
    with trio.move_on_after(60) as waiting:
        await mounted.read(info, HEAD - 10, 20)
    assert waiting.cancelled_caught
    assert mounted.view.demands == {1: 1}
    mounted.view.stalled.clear()
    assert await mounted.read(info, HEAD - 10, 20) == content(1, HEAD - 10, 20)


async def test_what_the_kernel_reads_ahead_of_a_kept_head_is_no_demand(
    mounted: Mounted, autojump_clock: trio.testing.MockClock
) -> None:
    mounted.view.stalled.add(1)
    kept = Handle(18, is_probe=True, is_impatient=True, is_kept=True).pack()
    assert await mounted.handlers.read(kept, 0, 32768) == content(1, 0, 32768)
    await fails(errno.EIO, mounted.handlers.read, kept, 32768, 131072)
    assert not mounted.view.demands
    # A single page is what somebody asks for, and libvirt has no time.
    await fails(errno.EIO, mounted.handlers.read, kept, HEAD, 4096)
    assert mounted.view.demands == {1: 1}
    assert trio.current_time() == operations.IMPATIENT_SECONDS


async def test_a_bug_in_giving_heads_harms_no_listing(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_row: int) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(mounted.view, "head_to_keep", fail)
    monkeypatch.setattr(operations.pyfuse3, "readdir_reply", lambda *_: True)
    mounted.requester = Requester.LIBVIRT
    directory = await mounted.handlers.opendir(inodes.TEMPLATES, CTX)  # type: ignore[arg-type]
    await mounted.handlers.readdir(directory, 0, None)
    await trio.testing.wait_all_tasks_blocked()
    assert mounted.handlers.crashes == {"keep_heads": 1}


async def test_a_small_file_is_all_head(mounted: Mounted) -> None:
    mounted.view.put(Entry(2, "b.img", 100, MTIME_NS, None))
    mounted.view.stalled.add(2)
    info = await mounted.open(os.O_NONBLOCK, inodes.file_inode(2))
    assert await mounted.read(info, 0, 1 << 20) == content(2, 0, 100)
    assert await mounted.read(info, 100, 10) == b""


async def test_nobody_reads_past_the_end(mounted: Mounted) -> None:
    mounted.view.stalled.add(1)
    info = await mounted.open()
    assert await mounted.read(info, SIZE, 10) == b""
    assert await mounted.read(info, SIZE + 10**6, 10) == b""
    mounted.view.stalled.clear()
    assert await mounted.read(info, SIZE - 5, 10) == content(1, SIZE - 5, 5)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.MirrorsExhaustedError("none answers"), errno.EIO),
        (errors.FetchRestingError("rests"), errno.EIO),
        (errors.CancelledFetchError("cancelled"), errno.EIO),
        (errors.StorageFullError("full"), errno.ENOSPC),
        (errors.NotHereYetError("EAGAIN is no answer to a blocking read"), errno.EIO),
        (errors.UnknownTemplateError("removed"), errno.EIO),
    ],
)
async def test_errors_of_a_read(mounted: Mounted, error: Exception, code: int) -> None:
    mounted.view.failing[1] = error
    info = await mounted.open()
    await fails(code, mounted.read, info, 0, 10)
    assert mounted.handlers.crashes.total() == 0


async def test_closing_answers_everybody_with_eio(
    mounted: Mounted, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    mounted.view.stalled.add(1)
    info = await mounted.open()
    answers: list[str] = []

    async def wait() -> None:
        await fails(errno.EIO, mounted.read, info, 0, 10)
        answers.append("EIO")

    for _ in range(50):
        nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert mounted.handlers.readers_waiting == 50
    await mounted.handlers.fail_readers()
    await trio.testing.wait_all_tasks_blocked()
    assert answers == ["EIO"] * 50
    mounted.view.stalled.clear()
    await fails(errno.EIO, mounted.read, info, 0, 10)
    await mounted.handlers.fail_readers()


# --- the guard around handlers -----------------------------------------------------------


async def test_an_unexpected_exception_is_one_error_for_one_caller(
    mounted: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    mounted.view.broken.add(1)
    await fails(errno.EIO, mounted.handlers.getxattr, 18, b"user.ddfs.row", CTX)
    assert mounted.handlers.crashes == {"getxattr": 1}
    assert "KeyError" in caplog.text


async def test_every_handler_of_ours_is_guarded() -> None:
    plain = {"init", "fail_readers", "directory_changed", "stacktrace", "forget"}
    for name, handler in vars(TemplateOperations).items():
        if callable(handler) and not name.startswith("_") and name not in plain:
            assert hasattr(handler, "__wrapped__"), name
            assert name in vars(pyfuse3.Operations), name


async def test_listing_offsets_are_rows(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand entries, replies of 24, and templates added and removed meanwhile."""
    view = FakeView()
    for row in range(0, 20000, 2):
        view.rows[row] = Entry(row, f"t{row}.img", 1, 0, None)
    handlers = TemplateOperations(view)
    batch: list[tuple[bytes, int]] = []

    def reply(token: object, name: bytes, attributes: object, next_id: int) -> bool:
        if len(batch) == 24:
            return False
        batch.append((name, next_id))
        return True

    monkeypatch.setattr(operations.pyfuse3, "readdir_reply", reply)
    seen: list[bytes] = []
    start = 0
    while True:
        batch.clear()
        await handlers.readdir(Handle(inodes.TEMPLATES).pack(), start, None)
        if not batch:
            break
        seen += [name for name, _ in batch]
        start = batch[-1][1]
        newest = max(view.rows)
        if newest < 20010:
            view.rows[newest + 1] = Entry(newest + 1, f"new{newest + 1}.img", 1, 0, None)
        view.rows.pop(start - 1)
    assert len(seen) == len(set(seen))
    assert {f"t{row}.img".encode() for row in range(0, 20000, 2)} <= set(seen)
    assert b"new20005.img" in seen
