"""One HTTP/1.1 connection for bulk data, used by one thread at a time.

h11 reads the heads and the chunked bodies; bodies of known length bypass it and go from
the socket straight into the caller's buffer, which is what makes this path fast.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import h11

from ddfs import __version__
from ddfs.fetch.address import Address, in_one_line
from ddfs.fetch.records import Records, records_of

# Enough for any head seen in the wild; more is an attack on our memory.
MAX_HEAD_BYTES: Final = 64 * 1024
_HEAD_READ: Final = 16 * 1024
# Over TLS a body of so much is worth to prepare for it, a few milliseconds the first time.
_BULK_BYTES: Final = 1024 * 1024

# How often a waiting thread looks whether it was aborted, should the wake-up get lost.
_POLL_SECONDS: Final = 1.0


class ConnectionAbortedByUsError(Exception):
    """The event loop called :meth:`Connection.abort`."""


class ProtocolError(Exception):
    """The other side does not speak HTTP/1.1 as it should."""


class ClosedEarlyError(Exception):
    """The connection ended before the response did."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status line and headers; names in lower case, the first of equal names counts."""

    status: int
    headers: Mapping[str, str]
    content_length: int | None
    is_chunked: bool


class Connection:
    """A socket to one origin. Everything but :meth:`abort` belongs to the using thread.

    ``peer`` is the address of the other end.
    """

    def __init__(self, address: Address, sock: socket.socket, peer: str = "") -> None:
        self.address = address
        self.peer = peer
        self.is_reusable = False
        self.was_used = False
        self._sock = sock
        self._aborted = False
        self._parser: h11.Connection | None = None
        self._leftover = memoryview(b"")
        self._remaining: int | None = 0
        self._ended = True
        self._needs_handshake = isinstance(sock, ssl.SSLSocket)
        self._records: Records | None = None
        # What was asked for and what came before this object was made.
        self._asked = b""
        self._early = memoryview(b"")

    def take_over(self, request: bytes, received: memoryview) -> None:
        """*request* was sent on this connection already, and *received* came back."""
        self._asked, self._early = request, received
        # Of no use for any other request; who makes one shall get a fresh connection.
        self.was_used = True

    def abort(self) -> None:
        """From any thread: end whatever waits on this connection, at once."""
        self._aborted = True
        # OSError: the other side was faster.
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown(): that one would let a reader see ciphertext.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back; only once no thread uses the connection."""
        socket.socket.close(self._sock)

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What it trusts and shows; None without TLS."""
        return self._sock.context if isinstance(self._sock, ssl.SSLSocket) else None

    def is_alive(self) -> bool:
        """Whether an idle connection can take another request: open and nothing to read."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not self._aborted and not poll.poll(0)

    # -- request and head -----------------------------------------------------------

    def request(self, address: Address, first: int, last: int, deadline: float) -> ResponseHead:
        """Ask for bytes *first* to *last* (inclusive) and read the head of the answer.

        *deadline* is on the monotonic clock, for the TLS handshake alone: how long a
        silent server is waited for, the scheduler decides. Raises ProtocolError,
        ClosedEarlyError, OSError, ssl.SSLError, ConnectionAbortedByUsError.
        """
        if self._needs_handshake:
            self._handshake(deadline)
        self.is_reusable = False
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        standard = [
            ("Host", address.host_header.encode("ascii")),
            ("User-Agent", f"ddfs/{__version__}".encode()),
            ("Accept", b"*/*"),
            ("Accept-Encoding", b"identity"),
            ("Range", b"bytes=%d-%d" % (first, last)),
        ]
        headers = [(name.encode("ascii"), value) for name, value in address.merged(standard)]
        try:
            head = parser.send(h11.Request(method="GET", target=address.target, headers=headers))
            tail = parser.send(h11.EndOfMessage())
            request = (head or b"") + (tail or b"")
            if self._asked and self._asked != request:
                raise ClosedEarlyError("was asked for something else before")
            if not self._asked:
                self._send(request)
            self._asked = b""
            return self._read_head(parser)
        except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
            raise ProtocolError(f"speaks no proper HTTP: {in_one_line(error)}") from None

    def _handshake(self, deadline: float) -> None:
        sock = self._sock
        if not isinstance(sock, ssl.SSLSocket):
            raise TypeError("a handshake without TLS")
        while True:
            if time.monotonic() > deadline:
                raise TimeoutError("the TLS handshake takes too long")
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            else:
                self._needs_handshake = False
                return

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(select.POLLOUT)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)

    def _read_head(self, parser: h11.Connection) -> ResponseHead:
        buffer = bytearray(_HEAD_READ)
        begun = False
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Response):
                return self._begin_body(parser, event)
            if isinstance(event, h11.InformationalResponse):
                continue
            if event is not h11.NEED_DATA:
                raise ProtocolError(f"answered with {type(event).__name__}")
            count = self._try_receive(memoryview(buffer))
            if count is None:
                self.wait_readable()
            elif count == 0:
                what = "in the middle of its answer" if begun else "before it answered"
                raise ClosedEarlyError(f"closed the connection {what}")
            else:
                begun = self.was_used = True
                parser.receive_data(bytes(buffer[:count]))

    def _begin_body(self, parser: h11.Connection, response: h11.Response) -> ResponseHead:
        headers: dict[str, str] = {}
        for name, value in response.headers:
            headers.setdefault(name.decode("ascii"), value.decode("latin-1"))
        is_chunked = "transfer-encoding" in headers
        length: int | None = None
        if not is_chunked and "content-length" in headers:
            length = int(headers["content-length"])  # h11 has checked that it is a number
        keeps = "close" not in headers.get("connection", "").lower()
        self._keeps = keeps and response.http_version == b"1.1"
        self._ended = False
        if is_chunked:
            self._parser, self._leftover = parser, memoryview(b"")
        else:
            self._parser = None
            self._leftover = memoryview(bytes(parser.trailing_data[0]))
        self._remaining = length
        if length is not None and length >= _BULK_BYTES and self._records is None:
            self._records = (
                records_of(self._sock) if isinstance(self._sock, ssl.SSLSocket) else None
            )
        if length == 0:
            self._finish()
        return ResponseHead(response.status_code, headers, length, is_chunked)

    # -- body -----------------------------------------------------------------------

    def receive_into(self, view: memoryview) -> int | None:
        """Body bytes into *view*: how many, 0 at the end of the body, None to wait first.

        Never blocks. Raises ClosedEarlyError, ProtocolError, OSError.
        """
        if self._ended:
            return 0
        if self._leftover:
            count = min(len(self._leftover), len(view))
            if self._remaining is not None and self._parser is None:
                count = min(count, self._remaining)
            view[:count] = self._leftover[:count]
            self._leftover = self._leftover[count:]
        elif self._parser is not None:
            return self._receive_chunked(view)
        else:
            if self._remaining is not None:
                view = view[: self._remaining]
            received = self._try_receive(view)
            if received is None:
                return None
            if received == 0:
                if self._remaining is not None:
                    raise ClosedEarlyError(f"ended {self._remaining} bytes early")
                self._ended = True
                return 0
            count = received
        if self._remaining is not None and self._parser is None:
            self._remaining -= count
            if self._remaining == 0:
                self._finish()
        return count

    def _receive_chunked(self, view: memoryview) -> int | None:
        parser = self._parser
        if parser is None:
            raise RuntimeError("no chunked body to read")
        try:
            event = parser.next_event()
            while event is h11.NEED_DATA:
                count = self._try_receive(view)
                if count is None:
                    return None
                parser.receive_data(bytes(view[:count]))
                event = parser.next_event()
        except h11.RemoteProtocolError as error:
            raise ClosedEarlyError(f"ended early: {in_one_line(error)}") from None
        if isinstance(event, h11.Data):
            data = memoryview(bytes(event.data))
            count = min(len(data), len(view))
            view[:count] = data[:count]
            self._leftover = data[count:]
            return count
        self._finish()
        return 0

    def _finish(self) -> None:
        self._ended = True
        self._parser = None
        # More than the response said: what follows would be taken for the next response.
        self.is_reusable = self._keeps and not self._leftover and not self._early

    def drain(self, limit: int) -> None:
        """Read away the rest of a body if it is at most *limit* bytes and known."""
        if self._ended or self._parser is not None or self._remaining is None:
            return
        if self._remaining > limit:
            return
        sink = memoryview(bytearray(max(1, self._remaining)))
        while not self._ended:
            if self.receive_into(sink) is None:
                self.wait_readable()

    # -- socket ---------------------------------------------------------------------

    def _try_receive(self, view: memoryview) -> int | None:
        if self._early:
            count = min(len(self._early), len(view))
            view[:count] = self._early[:count]
            # An empty view would keep its megabytes alive.
            self._early = self._early[count:] or memoryview(b"")
            return count
        try:
            if self._records is not None and (count := self._records.read_into(view)):
                return count
            return self._sock.recv_into(view)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self._wait(select.POLLOUT)
            return None
        except ssl.SSLEOFError:
            return 0
        except ConnectionResetError:
            if self._aborted:
                raise ConnectionAbortedByUsError from None
            raise

    def wait_readable(self, seconds: float = _POLL_SECONDS) -> bool:
        """Wait until something can be read, a while; :meth:`abort` ends it. Whether it can."""
        return self._wait(select.POLLIN, seconds)

    def _wait(self, events: int, seconds: float = _POLL_SECONDS) -> bool:
        poll = select.poll()
        poll.register(self._sock, events)
        ready = poll.poll(seconds * 1000)
        if self._aborted:
            raise ConnectionAbortedByUsError
        return bool(ready)


_CONTENT_RANGE: Final = re.compile(r"bytes +(\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.IGNORECASE)


def parse_content_range(value: str) -> tuple[int, int, int | None] | None:
    """First and last byte and the total (None for ``*``), or None when it is malformed."""
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None or int(match[2]) < int(match[1]):
        return None
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])
