"""Mirrors that do not speak HTTP: files of this host (``file:``) and on NFS servers (``nfs:``).

Only an operator names them: the reader of metalinks passes over such addresses. To the
scheduler they are mirrors like others. Everything blocks and runs in threads of its own
kind; whatever a server does, a thread ends within a step after it was told to.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar
from urllib.parse import urlsplit

import trio

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.fetch.documents import Answer, Look
from ddfs.fetch.local import ElsewhereError, LocalFile
from ddfs.fetch.mirrors import Failure, FailureKind
from ddfs.fetch.segment import BUFFER_BYTES, Segment, storage_error
from ddfs.model import MAX_SIZE, ByteRange

T = TypeVar("T")

SCHEMES: Final = frozenset({"file", "nfs"})

# A disk has no use for more, and a silent NFS server must not take the threads of others.
_LOCAL_THREADS: Final = 4
_NFS_THREADS: Final = 32

# Open files on NFS servers that wait for their next use, and for how long.
_MAX_IDLE: Final = 16
_MAX_IDLE_SECONDS: Final = 15.0

_RESOLVE_SECONDS: Final = 10.0

# Threads are counted before they are asked for.
_UNLIMITED: Final = trio.CapacityLimiter(math.inf)


def is_nfs(source: str) -> bool:
    """Whether *source* is on an NFS server."""
    return source.strip().lower().startswith("nfs:")


def place_of(url: str) -> tuple[str, str]:
    """What one who may read *url* may read: its server, or this host."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return "", ""
    return parts.scheme.lower(), parts.netloc.lower() if parts.scheme.lower() == "nfs" else ""


def typed_elsewhere(declaration: Declaration) -> frozenset[tuple[str, str]]:
    """The places that the operator typed; a path is one of this host."""
    texts = (declaration.source, declaration.checksum_url, declaration.signature)
    found = (
        place_of(text if ":" in text.partition("/")[0] else f"file:{text}")
        for text in texts
        if text
    )
    return frozenset(place for place in found if place[0] in SCHEMES)


class _File(Protocol):
    """An open file; blocking, for one thread. Its methods raise :class:`ElsewhereError`."""

    size: int
    tag: str
    is_paced: bool
    # The numeric address of who serves it; empty for this host.
    server: str

    def read_into(self, position: int, view: memoryview, stop: Callable[[], bool]) -> int: ...
    def copy_into(self, fd: int, position: int, count: int) -> int | None: ...
    def refuse_changed(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class _Stop:
    """Tells a thread to end."""

    is_set: bool = False

    def set(self) -> None:
        self.is_set = True

    def __call__(self) -> bool:
        return self.is_set


@dataclass
class Elsewhere:
    """Reads such files. *forbidden* are directories of ddfs's own, which are no sources."""

    forbidden: Sequence[Path] = ()
    _local: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(_LOCAL_THREADS)
    )
    _nfs: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_NFS_THREADS))
    _idle: list[tuple[float, str, _File]] = field(default_factory=list)

    @staticmethod
    def has(url: str) -> bool:
        """Whether *url* is such an address."""
        return url.partition(":")[0].lower() in SCHEMES

    def close(self) -> None:
        """Close what waits for its next use, without a word to servers."""
        for _, _, file in self._idle:
            _abandon(file)
        self._idle.clear()

    async def size_of(self, url: str) -> int:
        """The size in bytes. Raises :class:`errors.MirrorError`."""
        return await self._small(url, lambda file, _: file.size, is_fresh=True)

    async def look_at(self, url: str) -> Look:
        """Its size, and when it was written to as a tag that changes with it."""

        def look(file: _File, _stop: Callable[[], bool]) -> Look:
            tag = {"etag": f'"{file.tag}"'}
            return Look(file.size, (Answer(url, 200, tag, is_whole=False),))

        return await self._small(url, look, is_fresh=True)

    async def read_range(self, url: str, wanted: ByteRange, size: int | None) -> bytes:
        """Exactly those bytes, of a file of *size* if given; :class:`errors.MirrorError`."""

        def read(file: _File, stop: Callable[[], bool]) -> bytes:
            if size is not None and file.size != size:
                raise ElsewhereError(f"has {file.size} bytes, not {size}")
            return _read(file, wanted, stop)

        return await self._small(url, read)

    async def read_all(self, url: str, max_bytes: int) -> tuple[bytes, str]:
        """The whole file, and the numeric address of who served it, empty for this host.

        Raises :class:`errors.MirrorError`, and DocumentError when it is larger.
        """

        def read(file: _File, stop: Callable[[], bool]) -> tuple[bytes, str]:
            if file.size > max_bytes:
                raise errors.DocumentError(f"{url}: has more than {max_bytes} bytes")
            data = _read(file, ByteRange(0, file.size), stop) if file.size else b""
            return data, file.server

        return await self._small(url, read)

    async def _small(
        self, url: str, work: Callable[[_File, Callable[[], bool]], T], *, is_fresh: bool = False
    ) -> T:
        """*is_fresh*: an open file says what its name led to when it was opened."""
        stop = _Stop()
        try:
            return await self._in_thread(url, work, stop, stop.set, is_fresh=is_fresh)
        except ElsewhereError as error:
            raise errors.MirrorError(url, str(error)) from None

    async def fetch(self, segment: Segment, url: str) -> Failure | None:
        """As :meth:`ddfs.fetch.transport.Transport.fetch`."""

        def work(file: _File, stop: Callable[[], bool]) -> None:
            _fill(segment, file, stop)

        def stop() -> bool:
            return segment.is_aborted

        try:
            await self._in_thread(url, work, stop, segment.abort)
        except ElsewhereError as error:
            return None if segment.is_aborted else Failure(error.kind, str(error))
        return None

    # -- threads ------------------------------------------------------------------------

    async def _in_thread(
        self,
        url: str,
        work: Callable[[_File, Callable[[], bool]], T],
        stop: Callable[[], bool],
        abort: Callable[[], None],
        *,
        is_fresh: bool = False,
    ) -> T:
        """What *work* returns or raises; a cancellation makes *abort* end it."""
        is_local = url.lower().startswith("file:")
        idle = None if is_fresh else self._take_idle(url)
        server = "" if is_local or idle is not None else await _numeric(url)
        left: list[_File] = []

        def run() -> T:
            file = idle or self._open(url, server, stop)
            try:
                result = work(file, stop)
            except BaseException:
                _abandon(file)
                raise
            if is_local:
                file.close()
            else:
                left.append(file)
            return result

        limiter = self._local if is_local else self._nfs
        try:
            result = await _abortable(run, limiter, abort)
        finally:
            self._keep_idle(url, left)
        return result

    def _open(self, url: str, server: str, stop: Callable[[], bool]) -> _File:
        if url.lower().startswith("file:"):
            return LocalFile(url, self.forbidden)
        from ddfs.fetch.nfs import NfsAddress, NfsFile  # loads a library, for those who use it

        return NfsFile(NfsAddress.parse(url), server, stop)

    def _take_idle(self, url: str) -> _File | None:
        now = trio.current_time()
        found: _File | None = None
        kept = []
        for since, whose, file in self._idle:
            if now - since > _MAX_IDLE_SECONDS:
                _abandon(file)
            elif found is None and whose == url:
                found = file
            else:
                kept.append((since, whose, file))
        self._idle = kept
        return found

    def _keep_idle(self, url: str, files: Sequence[_File]) -> None:
        self._idle += [(trio.current_time(), url, file) for file in files]
        while len(self._idle) > _MAX_IDLE:
            _abandon(self._idle.pop(0)[2])


async def _abortable(
    run: Callable[[], T], limiter: trio.CapacityLimiter, abort: Callable[[], None]
) -> T:
    """*run* in a thread that a cancellation ends soon, and not before it has ended."""
    results: list[T] = []
    failures: list[Exception] = []

    async def abort_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            if not (results or failures):
                abort()

    async with limiter, trio.open_nursery() as nursery:
        nursery.start_soon(abort_when_cancelled)
        with trio.CancelScope(shield=True):
            try:
                results.append(await trio.to_thread.run_sync(run, limiter=_UNLIMITED))
            except (errors.DdfsError, ElsewhereError) as error:
                failures.append(error)
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    await trio.lowlevel.checkpoint_if_cancelled()
    return results[0]


async def _numeric(url: str) -> str:
    """The first address of an NFS server, resolved where a cancellation ends it."""
    from ddfs.fetch.nfs import DEFAULT_PORT, NfsAddress

    address = NfsAddress.parse(url)
    try:
        with trio.fail_after(_RESOLVE_SECONDS):
            found = await trio.socket.getaddrinfo(
                address.host, address.port or DEFAULT_PORT, type=trio.socket.SOCK_STREAM
            )
    except (OSError, UnicodeError, trio.TooSlowError) as error:
        reason = getattr(error, "strerror", None) or "the name cannot be resolved"
        raise ElsewhereError(f"{address.host}: {reason}", FailureKind.TRANSIENT) from None
    return str(found[0][4][0])


def _abandon(file: _File) -> None:
    """Close it without waiting for anybody."""
    abandon = getattr(file, "abandon", file.close)
    with contextlib.suppress(ElsewhereError):
        abandon()


# -- in a thread ------------------------------------------------------------------------


def _read(file: _File, wanted: ByteRange, stop: Callable[[], bool]) -> bytes:
    if wanted.end > min(file.size, MAX_SIZE):
        raise ElsewhereError(f"has {file.size} bytes, and not {wanted.end}")
    data = bytearray(len(wanted))
    view, done = memoryview(data), 0
    while done < len(data):
        count = file.read_into(wanted.start + done, view[done:], stop)
        if count == 0:
            raise ElsewhereError("became shorter while it was being read")
        done += count
    return bytes(data)


def _fill(segment: Segment, file: _File, stop: Callable[[], bool]) -> None:
    """All of *segment* from *file*, as far as it is still wanted."""
    if file.size != segment.file_size:
        raise ElsewhereError(f"has {file.size} bytes, not {segment.file_size}")
    buffer = memoryview(bytearray(BUFFER_BYTES))
    pacer = segment.pace.pacer
    try:
        while not segment.is_done:
            is_paced = file.is_paced and pacer.is_limited
            room = segment.claim(pacer.quantum if is_paced else len(buffer))
            if room == 0:
                continue
            count = _bring(segment, file, buffer[: min(room, len(buffer))], stop)
            if is_paced:
                segment.pay(count)
    finally:
        segment.claim(0)
    file.refuse_changed()


def _bring(segment: Segment, file: _File, view: memoryview, stop: Callable[[], bool]) -> int:
    """Some bytes into the partial file, through *view*. What is hashed is what is in there."""
    position = segment.position
    try:
        copied = file.copy_into(segment.fd, position, len(view))
    except OSError as error:
        raise storage_error(error) from error
    if copied:
        segment.take_in(view[:copied])
        return copied
    count = file.read_into(position, view, stop)
    if count == 0:
        raise ElsewhereError("became shorter while it was being copied")
    segment.feed(view[:count])
    return count
