"""Changes to pyfuse3's session loop: two without which a killed caller stops the event loop,
and a lock that halves the CPU time of a listing (:class:`ReadLock`).

pyfuse3 3.5 awaits ``wait_readable`` and then calls a blocking ``read(2)`` in the event loop's
thread, with the GIL held. If the request was withdrawn in between, because its caller got
SIGKILL while it was queued, the read blocks and everything stops until another request
happens to come: 22 of 105 kills did that, and none of 106 with the second look alone. The
second look leaves some microseconds; O_NONBLOCK closes them.

pyfuse3 finds trio through a global of its module, which its own asyncio layer replaces, too.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pyfuse3
import trio

log = logging.getLogger(__name__)

# Requests in a row before everybody else in the loop has a turn: 1 to 2 ms.
TURN: Final = 16


def install() -> None:
    """Put the changes under pyfuse3, for this process."""
    vars(pyfuse3)["trio"] = _Trio()


async def wait_readable(fd: int) -> None:
    """Return only if *fd* is readable now.

    Raises ``trio.ClosedResourceError`` when the descriptor is about to be closed. Whoever
    reads before the next checkpoint finds something, but for a withdrawal in between.
    Where something is there already it only checks for cancellation: others have their turn
    while pyfuse3 takes its lock, and a trip through epoll costs a quarter of a request.
    """
    look = select.poll()
    look.register(fd, select.POLLIN)
    await trio.lowlevel.checkpoint_if_cancelled()
    if look.poll(0):
        return
    while True:
        await trio.lowlevel.wait_readable(fd)
        if look.poll(0):
            return


async def run_worker(worker: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run one of pyfuse3's session loops, again whenever it found nothing to read.

    pyfuse3 takes EAGAIN for an error and leaves the loop. What that loses is the worker's
    buffer, 1 MiB of which only touched pages count, once in some million requests.
    """
    while True:
        try:
            await worker(*args)
        except BlockingIOError:
            log.debug("a request was withdrawn before it was read")
        else:
            return


class ReadLock:
    """Whose turn it is to read a request, for the workers of one mount.

    ``trio.Lock`` gives itself to the one that waits longest, so that each request cost two
    workers and a trip through the loop. Of this one a waiter is told that it is free, and
    who comes back from its request before that one runs has it again, TURN times in a row.
    Cancelling whoever waits takes nothing from the others.
    """

    def __init__(self) -> None:
        self._is_held = False
        self._waiting = trio.lowlevel.ParkingLot()
        # More would find it held and wait again.
        self._is_one_told = False
        self._taken = 0

    async def __aenter__(self) -> None:
        self._taken += 1
        if self._taken % TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        while self._is_held:
            await self._waiting.park()
            # From here to the lock is no checkpoint: being told is not lost.
            self._is_one_told = False
        self._is_held = True

    async def __aexit__(self, *_: object) -> None:
        self._is_held = False
        if not self._is_one_told and self._waiting:
            self._is_one_told = True
            self._waiting.unpark()


class _LowLevel:
    """``trio.lowlevel`` with the second look."""

    def __init__(self) -> None:
        self._unblocked: int | None = None

    async def wait_readable(self, fd: int) -> None:
        if fd != self._unblocked:
            os.set_blocking(fd, False)
            self._unblocked = fd
        await wait_readable(fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class _Nursery:
    """A nursery that starts everything through :func:`run_worker`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(
        self, worker: Callable[..., Awaitable[None]], *args: Any, name: object = None
    ) -> None:
        self._nursery.start_soon(run_worker, worker, *args, name=name)


class _Trio:
    """``trio`` as pyfuse3 is to see it."""

    Lock = ReadLock

    def __init__(self) -> None:
        self.lowlevel = _LowLevel()

    @asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[_Nursery]:
        async with trio.open_nursery() as nursery:
            yield _Nursery(nursery)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)
