"""The bytes of one run on their way from a connection into the file, hashed while hot.

A segment belongs to a worker thread while that runs; the event loop looks at ``position``,
moves ``limit`` and aborts. The lock makes the thread's claim and the loop's cut exclude
each other: a byte that was cut off is never written.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ddfs import errors
from ddfs.fetch.address import Address, distrust_of
from ddfs.fetch.connection import (
    ClosedEarlyError,
    Connection,
    ConnectionAbortedByUsError,
    ProtocolError,
    ResponseHead,
    parse_content_range,
)
from ddfs.fetch.gate import Gate
from ddfs.fetch.hot import HotPieces
from ddfs.fetch.identity import Identity
from ddfs.fetch.mirrors import Failure, FailureKind
from ddfs.fetch.pacing import UNPACED, Pace
from ddfs.model import Grid, HashAlgorithm, KiB, MiB

if TYPE_CHECKING:
    from hashlib import _Hash

# recv_into() with a megabyte measured best; beyond it the hash reads from memory, not cache.
BUFFER_BYTES: Final = 1 * MiB
# Collect at least this much before hashing and writing: TLS gives 16 KiB at a time.
_BATCH_BYTES: Final = 256 * KiB
# Less is read away sooner than a new connection is made.
_DRAIN_BYTES: Final = 256 * KiB
# A connection that broke is continued on a new one if it brought this much.
MIN_ATTEMPT_BYTES: Final = 256 * KiB
_HANDSHAKE_SECONDS: Final = 10.0
# A connection that brought so much without a pause is faster than this host, and its pause
# is the host's: it keeps its place for a moment, or others would bring what is read back.
_STRETCH_BYTES: Final = 1 * MiB
_LINGER_SECONDS: Final = 0.002

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# 408: the server gave up waiting for us; 425: too early.
_TRANSIENT: Final = frozenset({408, 425, 500, 502, 504})
_BUSY: Final = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class Done:
    """The segment has all its bytes, or was aborted."""


@dataclass(frozen=True, slots=True)
class Redirected:
    """The mirror points elsewhere."""

    location: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection ended early after it brought something: go on with a new one."""

    message: str


Outcome = Done | Redirected | Broken | Failure


class Segment:
    """Pieces *first* to *end* - 1, in order.

    *on_piece* is called in the worker thread with the piece's number and digest, after its
    bytes were handed to the kernel, and with the buffer of *hot* that has them too, which is
    then the callee's. Without *algorithm* nothing is hashed and the digest is
    empty; where ``leaves_hot_pieces``, those that went into such a buffer come without one.
    """

    def __init__(
        self,
        fd: int,
        grid: Grid,
        algorithm: HashAlgorithm | None,
        first: int,
        end: int,
        on_piece: Callable[[int, bytes | None, bytearray | None], None],
        hot: HotPieces | None = None,
    ) -> None:
        self.position = grid.bytes_of(first).start
        self.is_aborted = False
        self.ignores_ranges = False
        self.received = 0
        # The limits that it keeps to, and whether it waits for us and not for its mirror.
        self.pace: Pace = UNPACED
        self.is_held_back = False
        # Of a request that was sent before the segment was made: how long it waited for its
        # answer, and how much came in how many seconds.
        self.begun: tuple[float, int, float] | None = None
        # Which version its mirror serves, and whether another one can be told by its pieces.
        self.identity = Identity()
        self.is_checked_by_piece = True
        # Whether somebody else hashes the pieces that are still in memory.
        self.leaves_hot_pieces = False
        self._paid = threading.Event()
        # Where its thread waits while others are further in front, unless a reader waits
        # for what it brings.
        self.gate = Gate()
        self.is_urgent = False
        self._is_inside = False
        # What came since it last waited for its mirror.
        self._stretch = 0
        self._fd = fd
        self._grid = grid
        self._algorithm = algorithm
        self._on_piece = on_piece
        self._hot = hot
        # What the piece at `position` is received into; None: nothing that outlasts it.
        self._lent: bytearray | None = None
        self._limit = grid.bytes_of(end - 1).end
        self._claimed = self.position
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._wake: Callable[[], object] | None = None
        self._piece = first
        self._piece_end = grid.bytes_of(first).end
        self._hash: _Hash | None = algorithm.hasher() if algorithm else None

    # -- from the event loop --------------------------------------------------------

    def lower_limit(self, end: int) -> int:
        """End before piece *end*, or as soon after it as the writer can; returns where."""
        with self._lock:
            end = max(end, -(-self._claimed // self._grid.piece_length))
            start = end * self._grid.piece_length
            self._limit = min(self._limit, start)
            return end

    def raise_limit(self, end: int) -> None:
        """Go on to the end of piece *end* - 1."""
        with self._lock:
            self._limit = max(self._limit, self._grid.bytes_of(end - 1).end)

    def abort(self) -> None:
        """Stop at once."""
        with self._lock:
            self.is_aborted = True
            connection, wake = self._connection, self._wake
        self._paid.set()
        if connection is not None:
            connection.abort()
        if wake is not None:
            wake()

    @contextmanager
    def aborting(self, wake: Callable[[], object]) -> Iterator[None]:
        """Let :meth:`abort` call *wake* as well, for who does not use a :class:`Connection`."""
        self._wake = wake
        if self.is_aborted:
            wake()
        try:
            yield
        finally:
            self._wake = None

    @property
    def limit(self) -> int:
        """The first byte that it does not bring."""
        return self._limit

    @property
    def fd(self) -> int:
        """The partial file."""
        return self._fd

    @property
    def file_size(self) -> int:
        """The size that a mirror's file must have."""
        return self._grid.size

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.is_aborted or self.position >= self._limit

    # -- in the worker thread -------------------------------------------------------

    def attempt(self, connection: Connection, address: Address, buffer: bytearray) -> Outcome:
        """Ask for what is missing and take in the answer.

        Raises only :class:`errors.StorageError` and :class:`errors.StorageFullError`.
        """
        with self._lock:
            if self.is_aborted:
                return Done()
            self._connection = connection
        before = self.position
        was_used = connection.was_used
        try:
            return self._exchange(connection, address, memoryview(buffer))
        except ConnectionAbortedByUsError:
            return Done()
        except (ClosedEarlyError, OSError) as error:
            if self.is_aborted:
                return Done()
            message = _describe(error)
            stale = was_used and isinstance(error, ClosedEarlyError | ConnectionError)
            if self.position - before >= MIN_ATTEMPT_BYTES or (stale and self.position == before):
                return Broken(message)
            is_final = _is_about_certificates(error)
            return Failure(FailureKind.FINAL if is_final else FailureKind.TRANSIENT, message)
        except ProtocolError as error:
            return Failure(FailureKind.FINAL, str(error))
        finally:
            self._leave()
            with self._lock:
                self._connection = None
                self._claimed = self.position

    def _exchange(self, connection: Connection, address: Address, buffer: memoryview) -> Outcome:
        first, last = self.position, self._limit - 1
        deadline = time.monotonic() + _HANDSHAKE_SECONDS
        head = connection.request(address, first, last, deadline)
        refusal = self.check(head, first, last)
        if refusal is not None:
            connection.drain(_DRAIN_BYTES)
            return refusal
        skip = first if head.status == 200 else 0
        while not self.is_done:
            if skip:
                count = self._fill(connection, buffer[: min(skip, len(buffer))])
                skip -= count
                if self.pace.pacer.is_limited:
                    self.pay(count)
            else:
                count = self._take(connection, buffer)
            if count == 0:
                raise ClosedEarlyError("sent less than it was asked for")
        self._leave()
        if not self.is_aborted:
            connection.drain(_DRAIN_BYTES)
        return Done()

    def _take(self, connection: Connection, buffer: memoryview) -> int:
        """Receive some bytes and write them. 0 only at the end of the response."""
        while True:
            is_paced = self.pace.pacer.is_limited
            self._enter()
            view = self._view(buffer)
            room = self._claim(self.pace.pacer.quantum if is_paced else len(view))
            room = min(room, len(view))
            if room == 0:
                return 1
            count = 0
            ended = False
            while count < min(room, _BATCH_BYTES):
                received = connection.receive_into(view[count:room])
                if not received:
                    ended = received == 0
                    break
                count += received
            if count:
                self._stretch += count
                self.feed(view[:count])
                if is_paced:
                    self.pay(count)
                return count
            if ended:
                return 0
            # Waiting claims nothing, so that a cut can take all of it.
            self._claim(0)
            stretch, self._stretch = self._stretch, 0
            if stretch >= _STRETCH_BYTES and connection.wait_readable(_LINGER_SECONDS):
                continue
            self._leave()
            connection.wait_readable()

    def _view(self, buffer: memoryview) -> memoryview:
        """Where to receive: *buffer*, or the rest of the piece in the one that was lent."""
        start = self._piece * self._grid.piece_length
        if self._hot is not None and self.position == start and self._lent is None:
            self._lent = self._hot.lend(self._piece)
            if self._lent is not None and self.leaves_hot_pieces:
                self._hash = None
        if self._lent is None:
            return buffer
        at, end = self.position - start, self._piece_end - start
        return memoryview(self._lent)[at : min(at + BUFFER_BYTES, end)]

    def close(self) -> None:
        """Give back what was lent; only once no thread uses the segment."""
        if self._lent is not None and self._hot is not None:
            self._hot.give_back(self._lent)
        self._lent = None

    def _enter(self) -> None:
        """Be inside the gate, and let those go first who are further in front."""
        if self._is_inside:
            if not self.gate.is_wanted_before(self._rank()):
                return
            self._leave()
        self._is_inside = self.gate.try_enter()
        if not self._is_inside:
            self._claim(0)
            self.is_held_back = True
            self._is_inside = self.gate.enter(self._rank, lambda: self.is_aborted)
            self.is_held_back = False

    def _rank(self) -> int:
        return -1 if self.is_urgent else self.position

    def _leave(self) -> None:
        if self._is_inside:
            self._is_inside = False
            self.gate.leave()

    def pay(self, count: int) -> None:
        """Wait until the limits let *count* more bytes pass; claims nothing meanwhile."""
        self._claim(0)
        self._leave()
        self.is_held_back = True
        self.pace.pay(count, self._paid, lambda: self.is_aborted)
        self.is_held_back = False

    def _fill(self, connection: Connection, buffer: memoryview) -> int:
        while (count := connection.receive_into(buffer)) is None:
            connection.wait_readable()
        return count

    def _claim(self, most: int) -> int:
        with self._lock:
            if self.is_aborted:
                most = 0
            self._claimed = max(self.position, min(self.position + most, self._limit))
            return self._claimed - self.position

    def claim(self, most: int) -> int:
        """How many bytes may be fed now, at most *most*; for who brings them himself."""
        self.close()  # these bytes do not pass through what was lent
        return self._claim(most)

    def take_in(self, view: memoryview) -> None:
        """Hash what somebody else has written where *view*'s length was claimed.

        It is read back into *view*: only what is in the file counts. Raises StorageError.
        """
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], self.position + done)
            except OSError as error:
                raise storage_error(error) from error
            if count == 0:
                raise errors.StorageError("the partial file became shorter")
            done += count
        self.feed(view, is_written=True)

    def feed(self, data: memoryview, *, is_written: bool = False) -> None:
        """Hash and write *data*, which was claimed. Raises StorageError, StorageFullError."""
        position = self.position
        self.received += len(data)
        while data:
            part = data[: self._piece_end - position]
            if self._hash is not None:
                self._hash.update(part)
            if not is_written:
                self._write(part, position)
            position += len(part)
            data = data[len(part) :]
            if position == self._piece_end:
                self.position = position
                lent, self._lent = self._lent, None
                self._on_piece(self._piece, self._digest(), lent)
                self._piece += 1
                self._hash = self._algorithm.hasher() if self._algorithm else None
                self._piece_end = min(position + self._grid.piece_length, self._grid.size)
        self.position = position

    def _digest(self) -> bytes | None:
        if self._algorithm is None:
            return b""
        return self._hash.digest() if self._hash is not None else None

    def _write(self, data: memoryview, position: int) -> None:
        while data:
            try:
                count = os.pwrite(self._fd, data, position)
            except OSError as error:
                raise storage_error(error) from error
            data = data[count:]
            position += count

    # -- the answer -----------------------------------------------------------------

    def check(self, head: ResponseHead, first: int, last: int) -> Redirected | Failure | None:
        """What is wrong with the answer to a request for *first* to *last*; None if nothing."""
        status, headers = head.status, head.headers
        if status in _REDIRECTS:
            location = headers.get("location")
            if location:
                return Redirected(location)
            return Failure(FailureKind.FINAL, f"redirects (HTTP {status}) without saying where")
        if status in _BUSY:
            wait = _retry_after(headers.get("retry-after"))
            return Failure(FailureKind.BUSY, f"is too busy (HTTP {status})", wait)
        if status in _TRANSIENT:
            return Failure(FailureKind.TRANSIENT, f"failed (HTTP {status})")
        if status not in (200, 206):
            return Failure(FailureKind.FINAL, f"refuses (HTTP {status})")
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            return _final(f"sends {encoding!r} where the plain file was asked for")
        whole = status == 200
        refusal = self._check_whole(head) if whole else self._check_part(head, first, last)
        return refusal or self._check_identity(head, first)

    def _check_identity(self, head: ResponseHead, first: int) -> Failure | None:
        """Bytes of two versions never make up one piece, nor one file that nothing checks."""
        if not self.identity.has_changed(head.headers):
            return None
        message = "its file was changed while it was fetched"
        if not self.is_checked_by_piece:
            return _final(message)
        is_within_piece = first % self._grid.piece_length > 0
        return Failure(FailureKind.TRANSIENT, message) if is_within_piece else None

    def _check_whole(self, head: ResponseHead) -> Failure | None:
        if head.content_length is not None and head.content_length != self._grid.size:
            return _final(f"has {head.content_length} bytes, not {self._grid.size}")
        self.ignores_ranges = True
        return None

    def _check_part(self, head: ResponseHead, first: int, last: int) -> Failure | None:
        given = head.headers.get("content-range")
        parsed = parse_content_range(given) if given is not None else None
        if parsed is None:
            return _final("sends a part without saying which (no usable Content-Range)")
        start, end, total = parsed
        if total is not None and total != self._grid.size:
            return _final(f"has {total} bytes, not {self._grid.size}")
        # Less than asked is allowed (RFC 9110 section 15.3.7), more or other bytes are not.
        if start != first or end > last:
            return _final(f"sends bytes {start} to {end} when asked for {first} to {last}")
        if head.content_length is not None and head.content_length != end - start + 1:
            return _final("sends a Content-Length that contradicts its Content-Range")
        return None


def storage_error(error: OSError) -> errors.HostError:
    """The error of a failed write or read of the partial file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.StorageFullError(
            "no room left on the primary storage; make room, then fetch again"
        )
    return errors.StorageError(f"the partial file cannot be used: {error.strerror or error}")


def _final(message: str) -> Failure:
    return Failure(FailureKind.FINAL, message)


def _is_about_certificates(error: Exception) -> bool:
    """Whether one side has no use for the other's; told by name, for ssl is slow to import."""
    reason = str(getattr(error, "reason", ""))
    return type(error).__name__ == "SSLCertVerificationError" or "CERTIFICATE_REQUIRED" in reason


def _describe(error: Exception) -> str:
    if (distrust := distrust_of(str(error))) is not None:
        return distrust
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower() if error.errno else error.strerror
    return str(error) or type(error).__name__


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number or an HTTP date (RFC 9110 section 10.2.3)."""
    if value is None:
        return None
    value = value.strip()
    if value.isdecimal():
        return float(value[:9])
    from email.utils import parsedate_to_datetime  # slow to import, and rare

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
