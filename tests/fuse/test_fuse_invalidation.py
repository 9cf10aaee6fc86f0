"""The queue of notices, without a kernel at its end; test_fuse_mount has one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pyfuse3
import pytest
import trio
from fuse_driver import wait_for

from ddfs.fuse import invalidation
from ddfs.fuse.invalidation import Invalidations
from ddfs.fuse.notices import Notices


class Kernel:
    """Takes notices as pyfuse3 would, and keeps them."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.is_listening = threading.Event()
        self.is_listening.set()
        self.was_reached = threading.Event()
        self.failure: OSError | None = None

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        self.was_reached.set()
        self.is_listening.wait(90)
        self.told.append((parent, name))
        if self.failure is not None:
            raise self.failure

    def invalidate_inode(self, inode: int, attr_only: bool = False) -> None:
        assert attr_only, "forgetting pages waits for pages that a blocked reader has locked"
        self.told.append((inode,))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(pyfuse3, "invalidate_entry", kernel.invalidate_entry)
    monkeypatch.setattr(pyfuse3, "invalidate_inode", kernel.invalidate_inode)
    return kernel


@pytest.fixture
def thread(kernel: Kernel) -> Iterator[Notices]:
    thread = Notices("test")
    yield thread
    kernel.is_listening.set()
    thread.stop()
    assert thread.join(20)


@pytest.fixture
def notices(thread: Notices) -> Invalidations:
    return Invalidations(thread)


def test_notices_are_written_in_order_once_it_runs(
    kernel: Kernel, thread: Notices, notices: Invalidations
) -> None:
    notices.forget_attributes(18)
    notices.forget_name(2, b"a.img", 18, 19)
    assert kernel.told == []
    thread.start()
    notices.forget_attributes(20)
    wait_for(lambda: len(kernel.told) == 3)
    assert kernel.told == [(18,), (2, b"a.img"), (20,)]


def test_a_notice_that_fails_for_whatever_reason_stops_no_other(
    kernel: Kernel, thread: Notices, notices: Invalidations, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    thread.put(fail)
    notices.forget_attributes(18)
    thread.start()
    wait_for(lambda: len(kernel.told) == 1)
    assert "a bug" in caplog.text


def test_a_name_is_stale_until_a_while_after_the_kernel_knows(
    kernel: Kernel, thread: Notices, notices: Invalidations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidation, "STALE_SECONDS", 0.2)
    kernel.is_listening.clear()
    thread.start()
    notices.forget_name(2, b"a.img", 18, 19)
    notices.forget_name(2, b"a.img", 18, 19)
    assert notices.is_stale(18)
    assert notices.is_stale(19)
    assert not notices.is_stale(20)
    kernel.is_listening.set()
    wait_for(lambda: not notices.is_stale(18))
    assert len(kernel.told) == 2


async def test_whoever_waits_until_the_kernel_knows_waits_for_what_was_said_before(
    kernel: Kernel, thread: Notices, notices: Invalidations
) -> None:
    kernel.is_listening.clear()
    thread.start()
    await notices.told(18)  # nothing is on its way
    notices.forget_name(2, b"a.img", 18, 19)
    await notices.told(20)
    with trio.move_on_after(0.05) as scope:
        await notices.told(19)
    assert scope.cancelled_caught
    kernel.is_listening.set()
    with trio.fail_after(20):
        await notices.told(18, 19)
    assert kernel.told == [(2, b"a.img")]


def test_a_kernel_that_waits_does_not_stop_us(
    kernel: Kernel, thread: Notices, notices: Invalidations
) -> None:
    kernel.is_listening.clear()
    thread.start()
    notices.forget_name(2, b"a.img", 18)
    notices.forget_attributes(18)  # returns
    assert kernel.was_reached.wait(90)
    thread.stop()
    assert not thread.join(0.05)
    kernel.is_listening.set()
    assert thread.join(20)
    assert kernel.told == [(2, b"a.img")], "nothing is begun after the stop"


@pytest.mark.parametrize(("code", "is_told"), [(2, False), (107, False), (5, True)])
def test_what_the_kernel_does_not_know_is_no_failure(
    kernel: Kernel,
    thread: Notices,
    notices: Invalidations,
    caplog: pytest.LogCaptureFixture,
    code: int,
    is_told: bool,
) -> None:
    kernel.failure = OSError(code, "no")
    thread.start()
    notices.forget_name(2, b"a.img", 18)
    notices.forget_attributes(18)
    wait_for(lambda: len(kernel.told) == 2)
    assert bool(caplog.records) == is_told
