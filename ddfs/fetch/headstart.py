"""First requests, sent while the engine is still being loaded.

Importing trio and what stands on it takes 0.1 s of a new process. A mirror could send
4 MiB in that time, and one that is far away would just begin to. So the requests that
the scheduler will make first are made with plain sockets and threads, and what arrives
waits in memory until the :class:`connection.Connection` that goes on with it reads it.
Nothing here decides or verifies anything: the answer is read, checked, hashed and blamed as
any other, and an answer to what is not asked for in the end is thrown away.

Standard library only, and of ddfs what is pure.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ddfs import __version__
from ddfs.fetch.address import Address, AddressError
from ddfs.fetch.lanes import MAX_LANES
from ddfs.fetch.mirrors import in_order
from ddfs.fetch.runs import Ask
from ddfs.fetch.scheduler import Scheduler
from ddfs.model import KiB, Manifest, MiB

# As much as comes at 40 MiB/s until it is taken over; more waits in the kernel.
MAX_AHEAD_BYTES: Final = 4 * MiB
_READ_BYTES: Final = 256 * KiB

# Who takes longer is asked again, in the way of everybody.
_CONNECT_SECONDS: Final = 3.0
# What taking over waits for a thread that was told to end.
_JOIN_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Begun:
    """A connection on which *request* was sent, and what came back since.

    ``waited`` are the seconds until something came, or until now; ``seconds`` those since.
    """

    sock: socket.socket
    request: bytes
    received: memoryview
    waited: float
    seconds: float


class Headstart:
    """The first requests of one fetch, under way from the moment it is made."""

    def __init__(self, wanted: Iterable[tuple[Address, int, int]]) -> None:
        """*wanted* are addresses, each with the first and the last byte to ask it for."""
        self._starts = [_Start(*each) for each in wanted]

    def take(self, address: Address, first: int, last: int) -> Begun | None:
        """The connection on which these bytes were asked for, which is then the caller's.

        None if there is none, or it is not connected yet.
        """
        for start in self._starts:
            if (start.address, start.first, start.last) == (address, first, last):
                self._starts.remove(start)
                return start.take()
        return None

    def close(self) -> None:
        """End what nobody took; twice is no mistake."""
        for start in self._starts:
            if (begun := start.take()) is not None:
                begun.sock.close()
        self._starts.clear()


class _Start:
    """One request. Its thread owns the socket until it is taken."""

    def __init__(self, address: Address, first: int, last: int) -> None:
        self.address, self.first, self.last = address, first, last
        self._request = request_of(address, first, last)
        self._received = bytearray()
        self._lock = threading.Lock()
        self._is_over = False
        self._sock: socket.socket | None = None
        self._sent_at = 0.0
        self._answered_at: float | None = None
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, daemon=True, name="headstart")
        self._thread.start()

    def take(self) -> Begun | None:
        """Called once."""
        os.close(self._stop_writer)
        self._thread.join(_JOIN_SECONDS)
        with self._lock:
            self._is_over = True
            if self._sock is None:
                return None
        now = time.monotonic()
        answered_at = self._answered_at if self._answered_at is not None else now
        waited = answered_at - self._sent_at
        received = memoryview(self._received)
        return Begun(self._sock, self._request, received, waited, now - answered_at)

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, self._stop_reader)
                sock = stack.enter_context(self._connected())
                if self._is_stopped(0):
                    return  # too late: nobody waits for it any more
                self._sent_at = time.monotonic()
                sock.sendall(self._request)
                sock.setblocking(False)
                self._receive(sock)
                with self._lock:
                    if self._is_over:
                        return
                    self._sock = sock
                    stack.pop_all()
            os.close(self._stop_reader)
        except OSError:
            return  # said by who asks again

    def _connected(self) -> socket.socket:
        return socket.create_connection((self.address.host, self.address.port), _CONNECT_SECONDS)

    def _receive(self, sock: socket.socket) -> None:
        while len(self._received) < MAX_AHEAD_BYTES and not self._is_stopped(None, sock):
            data = sock.recv(_READ_BYTES)
            if not data:
                break  # the reader will see the same
            if self._answered_at is None:
                self._answered_at = time.monotonic()
            self._received += data
        self._is_stopped(None)

    def _is_stopped(self, timeout: int | None, sock: socket.socket | None = None) -> bool:
        """Wait until it is, or *sock* can be read; say whether it is."""
        poll = select.poll()
        poll.register(self._stop_reader, select.POLLIN | select.POLLHUP)
        if sock is not None:
            poll.register(sock, select.POLLIN)
        return any(fd == self._stop_reader for fd, _ in poll.poll(timeout))


def begin(manifest: Manifest, location: str | None, connections_per_host: int) -> Headstart:
    """The first requests for *manifest*, into an empty file and without any login or proxy.

    TLS is left to the engine, which knows what to trust.
    """
    mirrors = in_order(manifest.mirrors, location)
    lanes = min(MAX_LANES, connections_per_host)
    scheduler = Scheduler(manifest.grid, len(mirrors), lanes=lanes)
    scheduler.begin([], 0.0)
    wanted: list[tuple[Address, int, int]] = []
    used = Counter[tuple[str, int]]()
    for ask in scheduler.decide(0.0):
        if not isinstance(ask, Ask):
            continue
        with contextlib.suppress(AddressError):
            address = Address.parse(mirrors[scheduler.owner(ask.mirror)].url)
            server = (address.host, address.port)
            used[server] += 1
            plain = address.scheme == "http" and address.authorization is None
            if plain and used[server] <= connections_per_host:
                first = manifest.grid.bytes_of(ask.first).start
                wanted.append((address, first, manifest.grid.bytes_of(ask.end - 1).end - 1))
    return Headstart(wanted)


def request_of(address: Address, first: int, last: int) -> bytes:
    """The same bytes as :meth:`connection.Connection.request` sends, or it is sent again."""
    lines = (
        f"GET {address.target} HTTP/1.1",
        f"Host: {address.host_header}",
        f"User-Agent: ddfs/{__version__}",
        "Accept: */*",
        "Accept-Encoding: identity",
        f"Range: bytes={first}-{last}",
        "",
        "",
    )
    return "\r\n".join(lines).encode("ascii")
