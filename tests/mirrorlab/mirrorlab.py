"""Real HTTP/1.1 servers on loopback that misbehave by name.

::

    async with MirrorLab() as lab:
        good = lab.mirror(content, rate=20 * MiB)
        bad = lab.mirror(content, fault="stall")
        ...
        assert lab[bad].requests == 1

Each mirror has an address of its own (127.0.0.x, a port that the kernel chose), a rate for
the whole server (a token bucket, not one per connection) and a time to the first byte.
"""

from __future__ import annotations

import contextlib
import gzip
import mmap
import re
import socket
import ssl
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import trio

KiB = 1024
MiB = 1024 * KiB

FAULTS = {
    "stall": "sends `after` bytes of each response, then nothing, without closing",
    "drip": "sends 10 KiB/s",
    "silent": "accepts, reads the request, never answers",
    "refuse": "nobody listens",
    "unreachable": "the connection is never accepted",
    "corrupt": "flips a bit in every 8th MiB, the first one included",
    "corrupt_all": "flips a bit in every KiB, always the same",
    "corrupt_once": "flips a bit in its first response only",
    "corrupt_late": "flips a bit in the last KiB only",
    "reset": "resets the connection after `after` bytes of each response",
    "short": "closes the connection after `after` bytes of each response",
    "wrong_size": "has a file that is a KiB longer",
    "no_range": "answers 200 with the whole file to every request",
    "gzip": "sends the file gzipped, whatever was asked",
    "503": "answers 503 to every request",
    "503_once": "answers 503 with Retry-After: 1 to its first request",
    "429": "answers 429 with Retry-After: 3600",
    "404": "answers 404",
    "403": "answers 403",
    "410": "answers 410",
    "416": "answers 416",
    "500": "answers 500",
    "redirect": "redirects once to itself",
    "redirect_loop": "redirects for ever",
    "redirect_chain": "redirects eleven times and more",
    "redirect_file": "redirects to file:///etc/passwd",
    "redirect_malformed": "redirects to what is no address",
    "redirect_nowhere": "redirects without a Location",
    "oversend": "sends 4 KiB more than the response says",
    "overrange": "answers with a longer range than asked",
    "wrong_content_range": "says that it sends another range",
    "no_content_range": "answers 206 without Content-Range",
    "wrong_total": "names another total in Content-Range",
    "short_range": "answers with at most a MiB of what was asked",
    "http10": "speaks HTTP/1.0 and closes after each response",
    "chunked": "sends chunked, without a Content-Length",
    "until_close": "sends without a length, and closes at the end",
    "close_each": "closes the connection after each response",
    "close_idle": "says keep-alive and closes after each response all the same",
    "garbage": "does not speak HTTP",
    "endless_head": "sends headers for ever",
    "collapse": "falls to 100 KiB/s after `after` bytes in all",
    "change": "gets another version of the file, of the same size, after `after` bytes in all",
    "other_etags": "names another ETag in each response, and one Last-Modified",
    "die": "stops listening and resets all connections after `after` bytes in all",
}


@dataclass
class LabMirror:
    """One server and what it did."""

    url: str
    content: bytes | mmap.mmap
    rate: float | None
    latency: float
    fault: str | None
    after: int
    to: str | None = None
    wants: str | None = None
    requests: int = 0
    bytes_sent: int = 0
    connections: int = 0
    open: int = 0
    most_open: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    fields: tuple[str, ...] = ()
    etag: str | None = None
    _tokens: float = 0.0
    _filled_at: float | None = None
    _lock: trio.Lock = field(default_factory=trio.Lock)
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def path(self) -> str:
        return self.url.split("/", 3)[3]

    @property
    def version(self) -> str:
        """Of the file; opaque."""
        changed = self.fault == "change" and self.bytes_sent >= self.after
        return "newer" if changed else "lab"

    def current_rate(self) -> float | None:
        if self.fault == "drip":
            return 10.0 * KiB
        if self.fault == "collapse" and self.bytes_sent >= self.after:
            return 100.0 * KiB
        return self.rate

    async def take(self, wanted: int) -> int:
        """Wait until some of *wanted* bytes may be sent."""
        async with self._lock:
            while True:
                rate = self.current_rate()
                if rate is None:
                    return wanted
                now = trio.current_time()
                if self._filled_at is None:
                    self._filled_at = now
                earned = (now - self._filled_at) * rate
                self._tokens = min(self._tokens + earned, max(rate * 0.05, 16 * KiB))
                self._filled_at = now
                allowed = min(wanted, int(self._tokens))
                if allowed >= min(wanted, max(1, int(rate * 0.01)), 64 * KiB):
                    self._tokens -= allowed
                    return allowed
                await trio.sleep(0.01)


class MirrorLab:
    """An async context manager; its servers live until it ends."""

    def __init__(self) -> None:
        self._mirrors: dict[str, LabMirror] = {}
        self._count = 0
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> MirrorLab:
        self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._nursery.cancel_scope.cancel()
        await self._stack.aclose()

    def __getitem__(self, url: str) -> LabMirror:
        return self._mirrors[url]

    @property
    def bytes_sent(self) -> int:
        return sum(mirror.bytes_sent for mirror in self._mirrors.values())

    @property
    def requests(self) -> int:
        return sum(mirror.requests for mirror in self._mirrors.values())

    def mirror(
        self,
        content: bytes | Path,
        *,
        name: str = "image.img",
        rate: float | None = None,
        latency: float = 0.0,
        fault: str | None = None,
        after: int = 512 * KiB,
        tls: ssl.SSLContext | None = None,
        host: str | None = None,
        to: str | None = None,
        wants: str | None = None,
    ) -> str:
        """Start a mirror of *content* (bytes, or a file); returns its URL.

        *rate* is in bytes per second, *latency* in seconds to the first byte. It redirects
        everything *to* an address, and answers 401 to requests without the line *wants*.
        """
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"no such fault: {fault}")
        self._count += 1
        host = host or f"127.0.0.{1 + self._count % 250}"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, 0))
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if tls else "http"
        url = f"{scheme}://{shown}:{listening.getsockname()[1]}/{name}"
        mirror = LabMirror(url, _bytes_of(content), rate, latency, fault, after, to, wants)
        self._mirrors[url] = mirror
        if fault == "refuse":
            # Bound and not listening: refused, and nobody else gets the port.
            self._stack.callback(listening.close)
        elif fault == "unreachable":
            # A full queue of connections: the kernel drops the next SYN.
            listening.listen(0)
            self._stack.callback(listening.close)
            for _ in range(4):
                filler = socket.socket(family, socket.SOCK_STREAM)
                filler.setblocking(False)
                filler.connect_ex((host, listening.getsockname()[1]))
                self._stack.callback(filler.close)
        else:
            listening.listen(128)
            listener: trio.abc.Listener = trio.SocketListener(
                trio.socket.from_stdlib_socket(listening)
            )
            if tls is not None:
                listener = trio.SSLListener(listener, tls)
            self._nursery.start_soon(self._serve, mirror, listener)
        return url

    def stop(self, url: str) -> None:
        """Take the mirror away: its connections are cut, nobody listens."""
        self._mirrors[url]._scope.cancel()

    async def _serve(self, mirror: LabMirror, listener: trio.abc.Listener) -> None:
        async def handle(stream: trio.abc.HalfCloseableStream) -> None:
            mirror.connections += 1
            mirror.open += 1
            mirror.most_open = max(mirror.most_open, mirror.open)
            try:
                with contextlib.suppress(
                    trio.BrokenResourceError,
                    trio.ClosedResourceError,
                    ConnectionError,
                    ssl.SSLError,
                ):
                    async with stream:
                        await _Exchange(mirror, stream).run()
            finally:
                mirror.open -= 1

        with mirror._scope:
            await trio.serve_listeners(handle, [listener])


def _bytes_of(content: bytes | Path) -> bytes | mmap.mmap:
    if isinstance(content, bytes):
        return content
    with content.open("rb") as file:
        if content.stat().st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


class _Exchange:
    """One connection."""

    def __init__(self, mirror: LabMirror, stream: trio.abc.Stream) -> None:
        self.mirror = mirror
        self.stream = stream

    async def run(self) -> None:
        async with contextlib.aclosing(self._requests()) as requests:
            async for head in requests:
                mirror = self.mirror
                mirror.requests += 1
                mirror.heads.append(head)
                if mirror.latency:
                    await trio.sleep(mirror.latency)
                if not await self._respond(head):
                    return

    async def _requests(self) -> AsyncGenerator[bytes, None]:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                part = await self.stream.receive_some(64 * KiB)
                if not part:
                    return
                data += part
            head, data = data.split(b"\r\n\r\n", 1)
            yield head

    async def _respond(self, head: bytes) -> bool:
        """Answer one request; False ends the connection."""
        mirror, fault = self.mirror, self.mirror.fault
        if fault == "silent":
            await trio.sleep_forever()
        if fault == "garbage":
            await self.stream.send_all(b"220 ftp.example.org ready\r\n" * 10)
            return False
        if fault == "endless_head":
            await self.stream.send_all(b"HTTP/1.1 206 Partial Content\r\n")
            while True:
                await self.stream.send_all(b"X-Padding: " + b"x" * 1000 + b"\r\n")
        verb, target, _ = head.split(b"\r\n")[0].decode("latin-1").split(" ")
        status = {"404": 404, "403": 403, "410": 410, "416": 416, "500": 500, "503": 503}.get(
            fault or ""
        )
        if status is not None:
            return await self._status(status, "")
        if fault == "503_once" and mirror.requests == 1:
            return await self._status(503, "Retry-After: 1\r\n")
        if fault == "429":
            return await self._status(429, "Retry-After: 3600\r\n")
        if mirror.wants is not None and mirror.wants.encode() not in head.split(b"\r\n"):
            return await self._status(401, "")
        if mirror.to is not None:
            return await self._status(302, f"Location: {mirror.to}\r\n")
        if (fault or "").startswith("redirect") and not target.endswith("?there"):
            return await self._redirect(target)
        if target.split("?")[0] != "/" + mirror.path:
            return await self._status(404, "")
        return await self._file(head, verb)

    async def _status(self, status: int, extra: str) -> bool:
        text = f"HTTP/1.1 {status} No\r\n{extra}Content-Length: 0\r\n\r\n"
        await self.stream.send_all(text.encode())
        return True

    async def _redirect(self, target: str) -> bool:
        fault, path = self.mirror.fault, target.split("?")[0]
        step = int(target.partition("?step=")[2] or 0) + 1
        location = {
            "redirect": f"{path}?there",
            "redirect_loop": path,
            "redirect_chain": f"{path}?step={step}",
            "redirect_file": "file:///etc/passwd",
            "redirect_malformed": "http://[x/y",
        }.get(fault or "")
        return await self._status(302, f"Location: {location}\r\n" if location else "")

    async def _file(self, head: bytes, verb: str) -> bool:
        mirror, fault = self.mirror, self.mirror.fault
        content = mirror.content
        size = len(content) + (KiB if fault == "wrong_size" else 0)
        match = re.search(rb"\r\nrange: *bytes=(\d+)-(\d*)", head, re.IGNORECASE)
        if match and fault not in ("no_range", "gzip"):
            first = int(match[1])
            last = min(int(match[2]) if match[2] else size - 1, size - 1)
            if first >= size:
                return await self._status(416, f"Content-Range: bytes */{size}\r\n")
        else:
            match, first, last = None, 0, size - 1
        if fault == "short_range":
            last = min(last, first + MiB - 1)
        if fault == "overrange":
            last = min(last + 4 * KiB, size - 1)
        mirror.ranges.append((first, last))
        if fault == "gzip":
            return await self._gzip(content)
        count = last - first + 1
        version = "1.0" if fault == "http10" else "1.1"
        lines = [f"HTTP/{version} 206 Partial Content" if match else f"HTTP/{version} 200 OK"]
        total = size + (1 if fault == "wrong_total" else 0)
        shift = KiB if fault == "wrong_content_range" else 0
        if match and fault != "no_content_range":
            lines.append(f"Content-Range: bytes {first + shift}-{last + shift}/{total}")
        if fault == "chunked":
            lines.append("Transfer-Encoding: chunked")
        elif fault == "until_close":
            lines.append("Connection: close")
        else:
            lines.append(f"Content-Length: {count}")
        if fault == "close_each":
            lines.append("Connection: close")
        lines += ["Accept-Ranges: bytes", *self._validators(), *self.mirror.fields, "", ""]
        await self.stream.send_all("\r\n".join(lines).encode())
        if verb == "HEAD":
            return True
        if not await self._body(first, count):
            return False
        if fault == "chunked":
            await self.stream.send_all(b"0\r\n\r\n")
        if fault == "oversend":
            await self.stream.send_all(b"\xee" * 4 * KiB)
        wants_close = b"connection: close" in head.lower()
        return not wants_close and fault not in (
            "http10",
            "until_close",
            "close_each",
            "close_idle",
        )

    async def _gzip(self, content: bytes | mmap.mmap) -> bool:
        packed = gzip.compress(bytes(content[: 256 * KiB]))
        text = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
        await self.stream.send_all(text.encode() + packed)
        return True

    def _validators(self) -> list[str]:
        """Of the version that is served now."""
        mirror = self.mirror
        if mirror.fault == "other_etags":
            return [f'ETag: "{mirror.requests}"', "Last-Modified: Sun, 22 Nov 2026 10:00:00 GMT"]
        return [f'ETag: "{mirror.etag or mirror.version}"']

    async def _body(self, first: int, count: int) -> bool:
        mirror, fault = self.mirror, self.mirror.fault
        version, sent = mirror.version, 0
        while sent < count:
            step = min(256 * KiB, count - sent)
            if fault in ("stall", "reset", "short"):
                step = min(step, mirror.after - sent)
                if step <= 0:
                    return await self._break_off()
            step = await mirror.take(step)
            if mirror.version != version:
                return False  # the old version is gone
            data = self._slice(first + sent, step)
            if fault == "chunked":
                data = b"%x\r\n%b\r\n" % (step, data)
            await self.stream.send_all(data)
            sent += step
            mirror.bytes_sent += step
            if fault == "die" and mirror.bytes_sent >= mirror.after:
                mirror._scope.cancel()
        return True

    async def _break_off(self) -> bool:
        if self.mirror.fault == "stall":
            await trio.sleep_forever()
        if self.mirror.fault == "reset":
            stream = self.stream
            transport = getattr(stream, "transport_stream", stream)
            transport.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            transport.socket.close()
        return False

    def _slice(self, start: int, count: int) -> bytes:
        mirror, fault = self.mirror, self.mirror.fault
        data = bytes(mirror.content[start : start + count]).ljust(count, b"\0")
        damage = "corrupt_all" if mirror.version == "newer" else fault or ""
        step = {"corrupt": 8 * MiB, "corrupt_all": KiB}.get(damage)
        spots: list[int] = []
        if step is not None:
            first = -(-(start - 77) // step) * step + 77
            spots = list(range(max(77, first), start + count, step))
        elif fault == "corrupt_once" and mirror.requests == 1:
            spots = [start]
        elif fault == "corrupt_late":
            spots = [spot for spot in (len(mirror.content) - 100,) if start <= spot < start + count]
        if not spots:
            return data
        wrong = bytearray(data)
        for spot in spots:
            wrong[spot - start] ^= 1
        return bytes(wrong)
