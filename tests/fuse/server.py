"""A template pool over generated templates, to be driven from another process.

Started as ``server.py MOUNTPOINT [--switch…]``; reads one JSON command per line from standard
input and answers each with one JSON line. Says ``{"ready": …}`` first. The switches take
single cures away, so that tests can show what they cure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyfuse3
import trio
from fuse_fake import MTIME_NS, FakeView

from ddfs import errors
from ddfs.fuse import operations, pool, sessionloop, tuning
from ddfs.fuse.pool import TemplatePool
from ddfs.fuse.view import Entry


class Server:
    """The commands; each method named do_… is one."""

    def __init__(self, view: FakeView, mount: TemplatePool) -> None:
        self.view, self.pool = view, mount
        self.worst_gap = 0.0

    def do_add(self, row: int, name: str, size: int) -> None:
        self.view.put(Entry(row, name, size, MTIME_NS, None))
        self.pool.note_added(name)

    def do_fill(self, first: int, count: int, size: int) -> None:
        for row in range(first, first + count):
            self.view.put(Entry(row, f"t{row:05d}.img", size, MTIME_NS, None))
        self.pool.note_added("t")

    def do_remove(self, row: int) -> None:
        name = self.view.rows.pop(row).name
        del self.view.names[name]
        self.pool.note_removed(name, row)

    def do_publish(self, row: int, path: str | None, tell: bool = True) -> None:
        old = self.view.rows[row]
        self.view.put(Entry(row, old.name, old.size, old.mtime_ns, path))
        if tell:
            self.pool.note_changed(row)

    def do_link(self, name: str, target: str) -> None:
        self.pool.underlay.link(name, target)

    def do_stall(self, row: int) -> None:
        self.view.stalled.add(row)

    def do_release(self, row: int) -> None:
        self.view.stalled.discard(row)
        self.view.wake()

    def do_fail(self, row: int, kind: str) -> None:
        self.view.failing[row] = getattr(errors, kind)("it fails")

    def do_break(self, row: int) -> None:
        self.view.broken.add(row)

    def do_behead(self, row: int) -> None:
        self.view.headless.add(row)

    def do_doubt(self, row: int) -> None:
        self.view.doubtful.add(row)

    def do_kept(self, row: int) -> bool:
        return self.pool._kept.has(row)

    def do_storing(self, row: int) -> bool:
        return self.pool._kept.is_needless(row)

    def do_fetch(self, row: int, here: int, running: bool) -> None:
        self.view.here[row] = here
        (self.view.fetching.add if running else self.view.fetching.discard)(row)
        self.pool.note_changed(row)

    def do_progress(self, row: int, here: int) -> None:
        self.view.here[row] = here  # and nobody is told

    def do_demands(self, row: int) -> int:
        return self.view.demands.get(row, 0)

    def do_reads(self, row: int) -> int:
        return self.view.reads.get(row, 0)

    def do_requests(self) -> dict[str, int]:
        return dict(self.pool.requests)

    def do_crashes(self) -> dict[str, int]:
        return dict(self.pool.crashes)

    def do_waiting(self) -> int:
        return self.pool.readers_waiting

    def do_status(self) -> dict[str, Any]:
        return {
            "connection": self.pool.connection_id,
            "degraded": self.pool.degraded,
            "guard": self.pool._guard.pid if self.pool._guard else None,
        }

    def do_gap(self) -> float:
        worst, self.worst_gap = self.worst_gap, 0.0
        return worst

    def do_kill_caller(self, pid: int) -> None:
        """Kill *pid* between the kernel's word that its request is there and our read."""
        trio.lowlevel.add_instrument(KillBeforeRead(pid, sys.stdin.fileno()))

    def do_publish_in_lookup(self, name: str, row: int, path: str) -> None:
        def publish(looked_up: str) -> None:
            if looked_up == name:
                self.view.on_lookup = None
                self.do_publish(row, path)

        self.view.on_lookup = publish

    async def heartbeat(self) -> None:
        while True:
            before = trio.current_time()
            await trio.sleep(0.005)
            self.worst_gap = max(self.worst_gap, trio.current_time() - before)


class KillBeforeRead(trio.abc.Instrument):
    """Kills a process as soon as anything is readable that is not a command.

    Runs after epoll has said so and before any task does: the moment in which pyfuse3 has
    decided to read.
    """

    def __init__(self, pid: int, command_fd: int) -> None:
        self.pid, self.command_fd = pid, command_fd
        self.fuse = select.poll()
        self.fuse.register(fuse_fd(), select.POLLIN)

    def after_io_wait(self, timeout: float) -> None:
        if not self.fuse.poll(0):
            return
        os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while self.fuse.poll(0) and time.monotonic() < deadline:
            time.sleep(0.001)
        trio.lowlevel.remove_instrument(self)


def fuse_fd() -> int:
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                return int(name)
        except OSError:
            continue
    raise RuntimeError("no FUSE descriptor")


def take_cures_away(switches: argparse.Namespace) -> None:
    if switches.no_guarding:
        for name, handler in vars(operations.TemplateOperations).copy().items():
            if hasattr(handler, "__wrapped__"):
                setattr(operations.TemplateOperations, name, handler.__wrapped__)
    if switches.no_session_loop:
        sessionloop.install = lambda: None
    if switches.no_second_look:

        async def look_once(fd: int) -> None:
            await trio.lowlevel.wait_readable(fd)

        sessionloop.wait_readable = look_once
    if switches.no_limits:
        tuning.raise_limits = lambda _mount: []
    if switches.few_tasks:
        tuning.MAX_TASKS = 99


def notify_synchronously(mount: TemplatePool) -> None:
    def now(parent: int, name: bytes, *_inodes: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            pyfuse3.invalidate_entry(parent, name)

    mount._notices.forget_name = now  # type: ignore[method-assign]


async def main(switches: argparse.Namespace) -> None:
    view = FakeView()
    mount = pool.TemplatePool(view, Path(switches.mountpoint), with_guard=not switches.no_guard)
    if switches.synchronous:
        notify_synchronously(mount)
    server = Server(view, mount)
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(mount.serve)
        except errors.MountError as error:
            say({"error": str(error)})
            return
        nursery.start_soon(server.heartbeat)
        say({"ready": os.getpid()})
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            nursery.start_soon(end_on_signal, signals, mount, nursery.cancel_scope)
            await obey(server)
        await mount.close()
        nursery.cancel_scope.cancel()
    say({"closed": True})


async def end_on_signal(signals: Any, mount: TemplatePool, scope: trio.CancelScope) -> None:
    async for _ in signals:
        await mount.close()
        scope.cancel()


async def obey(server: Server) -> None:
    stream = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    buffer = b""
    while chunk := await stream.receive_some():
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            name, arguments = json.loads(line)
            try:
                say({"answer": getattr(server, f"do_{name}")(*arguments)})
            except Exception as error:
                say({"error": repr(error)})


def say(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    for switch in (
        "no-guard",
        "no-guarding",
        "no-session-loop",
        "no-second-look",
        "no-limits",
        "few-tasks",
        "synchronous",
    ):
        parser.add_argument(f"--{switch}", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    take_cures_away(options)
    trio.run(main, options)
