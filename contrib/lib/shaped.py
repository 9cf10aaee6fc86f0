"""Mirrors on loopback with a rate for each *server*, as a link has it, and with faults.

nginx's ``limit_rate`` is no substitute: it counts per connection and gives each new request a
burst for nothing. Here all connections of a mirror share one token bucket; what a link does
not carry while nobody asks is lost, as on a real one.

One process serves any number of mirrors, in one thread, with sendfile() from the page cache.
Run it as ``python -I -S shaped.py JSON``, where JSON is a list of :class:`Mirror` fields. It
prints their addresses as one line of JSON once they listen; then it answers each line on
standard input with one line of JSON: ``reset`` closes all connections and forgets all that
was counted, ``counts`` says what was counted. It ends with its standard input.

Standard library only: a site directory would cost more than the serving.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import re
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Final

MIB: Final = 1 << 20
KIB: Final = 1 << 10

# How often the buckets are filled. Each costs a sendfile() per busy connection; half of it is
# lost on average between a request and its first byte.
TICK_SECONDS: Final = 0.004

# Less than this is not worth a packet, but for the end of an answer.
QUANTUM_BYTES: Final = 1 * KIB

# What a router holds for a client that does not read: more is lost to the client.
BURST_SECONDS: Final = 0.05

# Between two looks at the clock when nothing is to be sent.
IDLE_SECONDS: Final = 0.5

# Browsers send less; what is longer is no request.
MAX_HEAD_BYTES: Final = 64 * KIB

# Small, so that what was counted as sent is soon received: a client that stops reading
# shall not have megabytes on their way.
SEND_BUFFER_BYTES: Final = 256 * KIB

FAULTS: Final = frozenset({"stall", "silent", "reset"})


@dataclass(frozen=True)
class Mirror:
    """What one mirror is. Rates in MiB/s.

    ``then`` is (seconds, rate): the rate from so many seconds after the first request on.
    ``fault``: ``stall`` sends ``fault_bytes`` of each answer and then nothing, for ever;
    ``reset`` sends as much and resets the connection; ``silent`` takes requests and never
    answers. A mirror that drips is one with a very low rate, one that lies has another
    ``root``.
    """

    address: str
    root: str
    rate: float
    latency: float = 0.0
    then: tuple[float, float] | None = None
    fault: str = ""
    fault_bytes: int = 0


@dataclass
class Counts:
    """``first_request_at`` is CLOCK_MONOTONIC, the same in all processes of a host."""

    requests: int = 0
    connections: int = 0
    bytes_sent: int = 0
    first_request_at: float | None = None


class Server:
    """One mirror: its listening socket, its bucket, its busy connections."""

    def __init__(self, mirror: Mirror) -> None:
        if mirror.fault and mirror.fault not in FAULTS:
            raise ValueError(f"no such fault: {mirror.fault}")
        self.mirror = mirror
        self.counts = Counts()
        self.senders: list[Connection] = []
        self.connections: set[Connection] = set()
        self.listener = socket.create_server((mirror.address, 0), backlog=128)
        self.listener.setblocking(False)
        self._tokens = 0.0
        self._filled_at = 0.0

    @property
    def url(self) -> str:
        address, port = self.listener.getsockname()[:2]
        return f"http://{address}:{port}"

    def rate(self, now: float) -> float:
        """Bytes per second."""
        began, then = self.counts.first_request_at, self.mirror.then
        if then is not None and began is not None and now - began > then[0]:
            return then[1] * MIB
        return self.mirror.rate * MIB

    def add(self, connection: Connection, now: float) -> None:
        """From now on it has something to send."""
        if not self.senders:
            self._tokens, self._filled_at = 0.0, now
        self.senders.append(connection)

    def send(self, now: float) -> None:
        """What the bucket allows, in turns among the connections."""
        rate = self.rate(now)
        self._tokens += (now - self._filled_at) * rate
        self._filled_at = now
        blocked: set[Connection] = set()
        while waiting := [c for c in self.senders if c not in blocked]:
            share = int(self._tokens) // len(waiting)
            before = self._tokens
            for connection in waiting:
                if share < min(QUANTUM_BYTES, connection.left):
                    blocked.add(connection)
                    continue
                sent = connection.send(min(share, connection.left))
                if sent == 0 and connection in self.senders:
                    # Its client does not read as fast as this link carries.
                    blocked.add(connection)
                    self._tokens = min(self._tokens, rate * BURST_SECONDS)
                self._tokens -= sent
                self.counts.bytes_sent += sent
            if self._tokens == before:
                break


@dataclass(eq=False)
class Connection:
    """One connection; ``position`` and ``end`` are of the body that is being sent."""

    server: Server
    socket: socket.socket
    received: bytes = b""
    fd: int = -1
    position: int = 0
    end: int = 0
    closes: bool = False
    is_broken: bool = False
    is_waiting: bool = False
    body_sent: int = field(default=0)

    @property
    def left(self) -> int:
        """Bytes that the fault lets it send yet."""
        left = self.end - self.position
        if self.server.mirror.fault_bytes:
            left = min(left, self.server.mirror.fault_bytes - self.body_sent)
        return left

    def send(self, count: int) -> int:
        try:
            sent = os.sendfile(self.socket.fileno(), self.fd, self.position, count)
        except BlockingIOError:
            return 0
        except OSError:
            self.is_broken = True
            return 0
        self.position += sent
        self.body_sent += sent
        return sent


class Loop:
    """All servers of this process, and its standard input."""

    def __init__(self, mirrors: list[Mirror]) -> None:
        self._selector = selectors.DefaultSelector()
        self._files: dict[str, int] = {}
        self._answers: list[tuple[float, int, Connection, bytes]] = []
        self._order = itertools.count()
        self._control = b""
        self.servers = [Server(mirror) for mirror in mirrors]
        for server in self.servers:
            self._selector.register(server.listener, selectors.EVENT_READ, server)
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ, None)

    def run(self) -> None:
        print(json.dumps([server.url for server in self.servers]), flush=True)
        next_tick = time.monotonic()
        while True:
            now = time.monotonic()
            is_busy = any(server.senders for server in self.servers)
            wake = next_tick if is_busy else now + IDLE_SECONDS
            if self._answers:
                wake = min(wake, self._answers[0][0])
            for key, _ in self._selector.select(max(0.0, wake - now)):
                if key.data is None:
                    if not self._obey():
                        return
                elif isinstance(key.data, Server):
                    self._accept(key.data)
                else:
                    self._receive(key.data)
            now = time.monotonic()
            while self._answers and self._answers[0][0] <= now:
                _, _, connection, head = heapq.heappop(self._answers)
                self._answer(connection, head, now)
            if now >= next_tick:
                next_tick = max(next_tick + TICK_SECONDS, now)
                for server in self.servers:
                    if server.senders:
                        server.send(now)
                        self._sort_out(server)

    def _obey(self) -> bool:
        """Whether to go on."""
        read = os.read(0, 4096)
        self._control += read
        while b"\n" in self._control:
            word, self._control = self._control.split(b"\n", 1)
            if word == b"reset":
                for server in self.servers:
                    for connection in list(server.connections):
                        self._close(connection)
                    server.counts = Counts()
            print(json.dumps([vars(server.counts) for server in self.servers]), flush=True)
        return bool(read)

    def _accept(self, server: Server) -> None:
        with contextlib.suppress(BlockingIOError):
            accepted, _ = server.listener.accept()
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            connection = Connection(server, accepted)
            server.connections.add(connection)
            server.counts.connections += 1
            self._selector.register(accepted, selectors.EVENT_READ, connection)

    def _receive(self, connection: Connection) -> None:
        try:
            read = connection.socket.recv(MAX_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            read = b""
        connection.received += read
        if not read or len(connection.received) > MAX_HEAD_BYTES:
            self._close(connection)
            return
        self._next_request(connection)

    def _next_request(self, connection: Connection) -> None:
        is_busy = connection.is_waiting or connection in connection.server.senders
        if is_busy or b"\r\n\r\n" not in connection.received:
            return
        head, connection.received = connection.received.split(b"\r\n\r\n", 1)
        server, now = connection.server, time.monotonic()
        server.counts.requests += 1
        if server.counts.first_request_at is None:
            server.counts.first_request_at = now
        if server.mirror.fault == "silent":
            return
        connection.is_waiting = True
        due = now + server.mirror.latency
        heapq.heappush(self._answers, (due, next(self._order), connection, head))

    def _answer(self, connection: Connection, head: bytes, now: float) -> None:
        connection.is_waiting = False
        if connection not in connection.server.connections:
            return
        request, _, fields = head.partition(b"\r\n")
        words = request.split()
        if len(words) != 3:
            self._close(connection)
            return
        verb, path, version = words
        wanted = re.search(rb"(?im)^range: *bytes=(\d+)-(\d*)\r?$", fields)
        asks_to_close = re.search(rb"(?im)^connection: *close\r?$", fields) is not None
        connection.closes = asks_to_close or version == b"HTTP/1.0"
        fd = self._open(connection.server, path.decode("ascii", "replace"))
        status = "200 OK"
        lines = ["Accept-Ranges: bytes", "Content-Type: application/octet-stream"]
        start = end = size = 0
        if fd is None:
            status = "404 Not Found"
        else:
            start, end = 0, (size := os.fstat(fd).st_size)
            lines.append(f'ETag: "{size:x}"')
            if wanted is not None:
                status, start = "206 Partial Content", int(wanted[1])
                end = min(int(wanted[2]) + 1, size) if wanted[2] else size
                lines.append(f"Content-Range: bytes {start}-{end - 1}/{size}")
            if start >= max(size, 1):
                status, start, end = "416 Range Not Satisfiable", 0, 0
                lines[-1] = f"Content-Range: bytes */{size}"
        lines = [f"HTTP/1.1 {status}", *lines, f"Content-Length: {end - start}", "", ""]
        try:
            connection.socket.send("\r\n".join(lines).encode("ascii"))
        except OSError:
            self._close(connection)
            return
        if verb == b"HEAD" or fd is None or start >= end:
            self._end_answer(connection)
            return
        connection.fd, connection.position, connection.end = fd, start, end
        connection.body_sent = 0
        connection.server.add(connection, now)

    def _open(self, server: Server, path: str) -> int | None:
        """The file under *path*, opened once: clients ask for one file again and again."""
        name = os.path.join(server.mirror.root, os.path.basename(path))
        if name not in self._files:
            try:
                self._files[name] = os.open(name, os.O_RDONLY)
            except OSError:
                return None
        return self._files[name]

    def _sort_out(self, server: Server) -> None:
        """Ends what is complete, broken, or has reached its fault."""
        for connection in list(server.senders):
            if connection.is_broken:
                self._close(connection)
            elif connection.position >= connection.end:
                server.senders.remove(connection)
                self._end_answer(connection)
            elif connection.left <= 0:
                # The fault. A stalled connection stays open and is never sent to again.
                server.senders.remove(connection)
                if server.mirror.fault == "reset":
                    option = struct.pack("ii", 1, 0)
                    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
                    self._close(connection)
                else:
                    connection.is_waiting = True

    def _end_answer(self, connection: Connection) -> None:
        if connection.closes:
            self._close(connection)
        else:
            self._next_request(connection)

    def _close(self, connection: Connection) -> None:
        server = connection.server
        if connection not in server.connections:
            return
        server.connections.discard(connection)
        if connection in server.senders:
            server.senders.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()


def main(specification: str) -> int:
    mirrors = []
    for fields in json.loads(specification):
        then = fields.pop("then", None)
        mirrors.append(Mirror(**fields, then=tuple(then) if then else None))
    with contextlib.suppress(KeyboardInterrupt):
        Loop(mirrors).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
