"""Keeps libvirt's pool on the mount as it should be, whenever libvirtd is there."""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import libvirt
import trio

from ddfs import errors
from ddfs.virt.connection import Libvirt, is_down
from ddfs.virt.debounce import Debounce, Pauses
from ddfs.virt.template_pool import PoolStatus, TemplatePool

log = logging.getLogger(__name__)

T = TypeVar("T")

# "pool has asynchronous jobs running" (a vol-clone, a vol-upload) has no code of its own, only
# VIR_ERR_INTERNAL_ERROR. Trying again does no harm to what else has that code.
_BUSY: Final = libvirt.VIR_ERR_INTERNAL_ERROR
_BUSY_TRIES: Final = 20
_BUSY_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often the keeper acts; all in seconds."""

    # Registering many templates ends in one refresh, and none waits long for it.
    quiet: float = 1.0
    latest: float = 5.0
    # A look at a healthy pool is three calls of 0.1 ms.
    look: float = 5.0
    # libvirtd is down, or the pool does not start.
    first_pause: float = 1.0
    longest_pause: float = 10.0


class _State(enum.Enum):
    """What the keeper knows, and what it says once when it comes to know it."""

    DOWN = "libvirtd is down"
    BROKEN = "the pool cannot be used"
    ABSENT = "no pool is defined on the mount"
    ACTIVE = "the pool is active"


class PoolKeeper:
    """The pool on *path*: ``run`` is its task, the rest may be called from any other.

    ``define``, ``refresh`` and ``undefine`` raise :class:`errors.LibvirtError`.
    """

    def __init__(self, libvirt: Libvirt, path: Path, rhythm: Rhythm | None = None) -> None:
        self._libvirt = libvirt
        self._pool = TemplatePool(path)
        self._rhythm = rhythm or Rhythm()
        self._changes = Debounce(self._rhythm.quiet, self._rhythm.latest)
        self._pauses = Pauses(self._rhythm.first_pause, self._rhythm.longest_pause)
        self._next_look = 0.0
        self._state: _State | None = None
        self._said = ""
        self._wakeup = trio.Event()

    async def status(self) -> PoolStatus | None:
        """The pool, None if none is defined."""
        return await self._libvirt.call(self._pool.status)

    async def define(self, name: str | None = None) -> PoolStatus:
        """Define the pool and start it, or adopt the one on the path under its own name."""
        before = await self.status()
        self._changes.taken()
        if before is None or not before.active:
            after = await self._libvirt.call(self._timed(lambda c: self._pool.define(c, name)))
        else:
            after = await self._libvirt.call(lambda c: self._pool.define(c, name))
        # Starting it has shown it everything; one that ran already has to be told.
        if before is not None and before.active:
            self.note_changed()
        self._enter(_State.ACTIVE, f"libvirt pool {after.name!r} is active")
        return after

    async def refresh(self) -> PoolStatus:
        """Make libvirt look at the directory again, now."""
        self._changes.taken()
        try:
            return await self._patiently(self._timed(self._pool.refresh))
        except errors.LibvirtError:
            self._changes.changed(trio.current_time())
            raise

    async def undefine(self) -> PoolStatus:
        """Take the pool away from libvirt; no file is touched."""
        return await self._patiently(self._pool.undefine)

    def note_changed(self) -> None:
        """Templates were added or removed: the pool is refreshed soon. Never blocks."""
        self._changes.changed(trio.current_time())
        self._wake()

    async def run(self) -> None:
        """Start the pool when libvirtd is (back) up, refresh it after changes; until cancelled.

        libvirtd may come and go; what that means is logged when it changes.
        """
        self._next_look = trio.current_time()
        while True:
            await self._wait()
            now = trio.current_time()
            if now >= self._next_look:
                await self._look()
            elif now >= self._changes.due:
                await self._refresh_after_changes()

    def _wake(self) -> None:
        self._wakeup.set()
        self._wakeup = trio.Event()

    async def _wait(self) -> None:
        # A change moves the time, so it is looked at again after each.
        while (until := min(self._next_look, self._changes.due)) > trio.current_time():
            with trio.move_on_at(until):
                await self._wakeup.wait()

    async def _look(self) -> None:
        """See how the pool is, and start it if it is there and does not run."""
        was = self._state
        try:
            before = await self.status()
            after = before if before is None or before.active else await self._started()
        except errors.LibvirtError as error:
            self._failed(error)
            return
        self._pauses.succeeded()
        self._next_look = trio.current_time() + self._rhythm.look
        if after is None:
            self._enter(_State.ABSENT, f"no libvirt pool on {self._pool.path}")
            return
        self._enter(_State.ACTIVE, f"libvirt pool {after.name!r} is active")
        if was is not _State.ACTIVE and before is not None and before.active:
            # It ran before we looked; nobody told it what changed meanwhile.
            self._changes.changed(trio.current_time())

    async def _started(self) -> PoolStatus | None:
        return await self._libvirt.call(self._timed(self._pool.start))

    def _timed(self, refreshing: Callable[[libvirt.virConnect], T]) -> Callable[..., T]:
        """*refreshing*, which lists the whole directory; how long it took is remembered.

        libvirt holds the pool meanwhile, and everybody's `vol-list` with it: 1 to 3 s with
        10,000 templates, so that many changes had better wait for each other.
        """

        def timed(connection: libvirt.virConnect) -> T:
            began = time.monotonic()
            done = refreshing(connection)
            self._changes.took(time.monotonic() - began)
            return done

        return timed

    async def _refresh_after_changes(self) -> None:
        self._changes.taken()
        if self._state is not _State.ACTIVE:
            return  # starting it refreshes it
        try:
            await self.refresh()
        except errors.LibvirtError as error:
            if error.code == _BUSY:
                self._changes.changed(trio.current_time())  # such a job may take minutes
                return
            # A refresh that fails leaves the pool inactive (storagePoolRefreshFailCleanup).
            self._failed(error)

    def _failed(self, error: errors.LibvirtError) -> None:
        if is_down(error):
            self._enter(_State.DOWN, f"{error}; templates work without it")
        elif error.code == libvirt.VIR_ERR_NO_STORAGE_POOL:
            self._enter(_State.ABSENT, f"no libvirt pool on {self._pool.path}")
        else:
            self._enter(_State.BROKEN, f"libvirt's pool on {self._pool.path}: {error}")
        self._next_look = trio.current_time() + self._pauses.failed()

    def _enter(self, state: _State, text: str) -> None:
        # That libvirtd is down has several texts, and they say the same.
        is_known = text == self._said or state is self._state is _State.DOWN
        if not is_known:
            trouble = state in (_State.DOWN, _State.BROKEN)
            log.log(logging.WARNING if trouble else logging.INFO, "%s", text)
        self._state, self._said = state, text

    async def _patiently(self, function: Callable[[libvirt.virConnect], T]) -> T:
        for _ in range(_BUSY_TRIES - 1):
            try:
                return await self._libvirt.call(function)
            except errors.LibvirtError as error:
                if error.code != _BUSY:
                    raise
            await trio.sleep(_BUSY_PAUSE_SECONDS)
        return await self._libvirt.call(function)
