from __future__ import annotations

import os
from collections.abc import Iterator

import pyfuse3
import pytest
import trio
import trio.testing

from ddfs.fuse import sessionloop


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


class Withdraw(trio.abc.Instrument):
    """Empties the pipe after epoll saw something in it and before any task runs, once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.times = 0

    def after_io_wait(self, timeout: float) -> None:
        os.set_blocking(self.fd, False)
        try:
            os.read(self.fd, 1)
        except BlockingIOError:
            return
        self.times += 1
        trio.lowlevel.remove_instrument(self)


async def test_without_the_second_look_a_withdrawn_request_looks_readable(
    pipe: tuple[int, int],
) -> None:
    withdrawing = Withdraw(pipe[0])
    trio.lowlevel.add_instrument(withdrawing)
    os.write(pipe[1], b"x")
    with trio.fail_after(90):
        await trio.lowlevel.wait_readable(pipe[0])
    assert withdrawing.times == 1
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)


async def test_with_it_the_wait_goes_on(pipe: tuple[int, int], nursery: trio.Nursery) -> None:
    async def write_soon() -> None:
        await trio.testing.wait_all_tasks_blocked()
        os.write(pipe[1], b"x")

    withdrawing = Withdraw(pipe[0])
    trio.lowlevel.add_instrument(withdrawing)
    nursery.start_soon(write_soon)
    with trio.move_on_after(0.2) as waiting:
        await sessionloop.wait_readable(pipe[0])
    assert withdrawing.times == 1
    assert waiting.cancelled_caught
    os.write(pipe[1], b"y")
    with trio.fail_after(90):
        await sessionloop.wait_readable(pipe[0])
    assert os.read(pipe[0], 1) == b"y"


async def test_what_is_there_already_is_not_waited_for(pipe: tuple[int, int]) -> None:
    withdrawing = Withdraw(pipe[0])
    trio.lowlevel.add_instrument(withdrawing)
    os.write(pipe[1], b"x")
    await sessionloop.wait_readable(pipe[0])
    assert withdrawing.times == 0
    assert os.read(pipe[0], 1) == b"x"
    trio.lowlevel.remove_instrument(withdrawing)


async def test_a_worker_that_is_cancelled_takes_nothing(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    with trio.CancelScope() as scope:
        scope.cancel()
        await sessionloop.wait_readable(pipe[0])
    assert scope.cancelled_caught


async def test_a_worker_that_found_nothing_goes_on() -> None:
    calls = []

    async def worker(*args: object) -> None:
        calls.append(args)
        await trio.lowlevel.checkpoint()
        if len(calls) < 3:
            raise BlockingIOError

    await sessionloop.run_worker(worker, 1, 2)
    assert calls == [(1, 2)] * 3


async def test_other_errors_of_a_worker_are_not_hidden() -> None:
    async def worker() -> None:
        raise OSError(5, "the device is broken")

    with pytest.raises(OSError, match="broken"):
        await sessionloop.run_worker(worker)


async def test_pyfuse3_gets_a_trio_that_does_both(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(pyfuse3), "trio", trio)
    sessionloop.install()
    seen = vars(pyfuse3)["trio"]
    assert seen.Lock is sessionloop.ReadLock
    assert seen.Event is trio.Event
    assert seen.lowlevel.notify_closing is trio.lowlevel.notify_closing
    os.write(pipe[1], b"x")
    await seen.lowlevel.wait_readable(pipe[0])
    assert not os.get_blocking(pipe[0])
    calls = []

    async def worker() -> None:
        calls.append(trio.lowlevel.current_task().name)
        await trio.lowlevel.checkpoint()
        if len(calls) == 1:
            raise BlockingIOError

    async with seen.open_nursery() as nursery:
        nursery.start_soon(worker, name="pyfuse-01")
    assert calls == ["pyfuse-01"] * 2


async def _keep(lock: sessionloop.ReadLock, release: trio.Event, seen: list[str]) -> None:
    async with lock:
        seen.append("in")
        await release.wait()
    seen.append("out")


async def test_one_alone_reads_at_a_time_and_all_have_their_turn(nursery: trio.Nursery) -> None:
    lock, seen = sessionloop.ReadLock(), list[str]()
    releases = [trio.Event() for _ in range(20)]
    for release in releases:
        nursery.start_soon(_keep, lock, release, seen)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["in"]
    for release in releases:
        release.set()
    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["in", "out"] * len(releases)


async def test_who_comes_back_at_once_has_it_again_but_not_for_ever(
    nursery: trio.Nursery,
) -> None:
    lock, seen = sessionloop.ReadLock(), list[str]()
    release = trio.Event()
    release.set()
    rounds, others = 0, 0
    async with lock:
        nursery.start_soon(_keep, lock, release, seen)
        await trio.testing.wait_all_tasks_blocked()
    for _ in range(3 * sessionloop.TURN):
        async with lock:
            rounds += not seen
            others += bool(seen)
    assert 0 < rounds <= 2 * sessionloop.TURN
    assert others


async def test_a_waiter_that_is_cancelled_leaves_the_lock_to_the_others(
    nursery: trio.Nursery,
) -> None:
    lock, first, seen = sessionloop.ReadLock(), trio.Event(), list[str]()
    release = trio.Event()
    release.set()
    nursery.start_soon(_keep, lock, first, [])
    await trio.testing.wait_all_tasks_blocked()
    async with trio.open_nursery() as given_up:
        given_up.start_soon(_keep, lock, release, [])
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_keep, lock, release, seen)
        await trio.testing.wait_all_tasks_blocked()
        first.set()
        given_up.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["in", "out"]
