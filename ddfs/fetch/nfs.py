"""Files on NFS servers, through libnfs: no mount, no privilege, no helper.

The only thing here that is not ours is the C library, bound with ctypes as its header
``nfsc/libnfs.h`` of versions 4 and 5 declares it. Its asynchronous calls are used and waited for
here, so that a server that falls silent costs a deadline and a cancellation takes effect at
once, whatever the library thinks of time. The library resolves names by itself and blocks:
it is given addresses.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import secrets
import select
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from ddfs.fetch.local import ElsewhereError
from ddfs.fetch.mirrors import FailureKind
from ddfs.model import MiB

# Their numbers stand for the interface: what is used of these two is the same (Debian 12 has the
# first, Debian 13 the second), later ones have other arguments.
_LIBRARIES: Final = ("libnfs.so.13", "libnfs.so.14")

DEFAULT_PORT: Final = 2049

# To mount and open takes a dozen round trips; a read of a mebibyte, as on a slow line.
_OPEN_SECONDS: Final = 15.0
_READ_SECONDS: Final = 15.0
_CLOSE_SECONDS: Final = 1.0
# How soon an abort is noticed.
_STEP_SECONDS: Final = 0.05

# What one READ asks for: servers have a megabyte as their most.
_READ_BYTES: Final = 1 * MiB

# Longer ones are no paths (PATH_MAX).
_MAX_PATH: Final = 4096

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class _SilentError(ElsewhereError):
    """The server does not answer; another version of the protocol would not help."""


class _Stat64(ctypes.Structure):
    """``struct nfs_stat_64``."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"),
            *("atime", "mtime", "ctime", "atime_nsec", "mtime_nsec", "ctime_nsec", "used"),
        )
    )


@functools.cache
def _library() -> Any:
    """Libnfs with its prototypes. Raises :class:`ElsewhereError` where it is not installed."""
    library = _loaded()
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    wide = ctypes.c_uint64
    for name, result, arguments in (
        ("nfs_init_context", pointer, ()),
        ("nfs_destroy_context", None, (pointer,)),
        ("nfs_get_error", text, (pointer,)),
        ("nfs_get_fd", number, (pointer,)),
        ("nfs_which_events", number, (pointer,)),
        ("nfs_service", number, (pointer, number)),
        ("nfs_set_autoreconnect", None, (pointer, number)),
        ("nfs_set_version", number, (pointer, number)),
        ("nfs4_set_client_name", None, (pointer, text)),
        ("nfs4_set_verifier", None, (pointer, text)),
        ("nfs_parse_url_incomplete", pointer, (pointer, text)),
        ("nfs_destroy_url", None, (pointer,)),
        ("nfs_mount_async", number, (pointer, text, text, _CALLBACK, pointer)),
        ("nfs_open_async", number, (pointer, text, number, _CALLBACK, pointer)),
        ("nfs_fstat64_async", number, (pointer, pointer, _CALLBACK, pointer)),
        ("nfs_pread_async", number, (pointer, pointer, wide, wide, _CALLBACK, pointer)),
        ("nfs_close_async", number, (pointer, pointer, _CALLBACK, pointer)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _loaded() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ElsewhereError(
        f"NFS takes {' or '.join(_LIBRARIES)}, neither of which is installed (Debian's packages "
        "libnfs13 and libnfs14)"
    )


@dataclass(frozen=True, slots=True)
class NfsAddress:
    """An ``nfs:`` address (RFC 2224), taken apart; ``port`` is None where it has none."""

    host: str
    port: int | None
    directory: str
    name: str

    @classmethod
    def parse(cls, url: str) -> NfsAddress:
        """Raises :class:`ElsewhereError`."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ElsewhereError(f"the address is malformed: {error}") from None
        path = unquote(parts.path)
        directory, _, name = path.rpartition("/")
        if not host or not name or "\0" in path or len(path) > _MAX_PATH:
            raise ElsewhereError("an NFS address is nfs://HOST/EXPORT/PATH")
        if parts.query or parts.fragment or parts.username is not None:
            raise ElsewhereError("an NFS address takes neither options nor a user")
        return cls(host, port, directory or "/", name)


class NfsFile:
    """An open file on an NFS server. For one thread at a time.

    NFS 4 is tried first, which takes one port; then version 3 with the server's portmapper.
    """

    is_paced = True

    def __init__(self, address: NfsAddress, server: str, stop: Callable[[], bool]) -> None:
        """*server* is a numeric address of the host. Raises :class:`ElsewhereError`."""
        self.server = server
        self._session, self._file = _opened(address, server, stop)
        try:
            mode, self.size, self._mtime = self._look(stop)
            if not stat.S_ISREG(mode):
                raise ElsewhereError("is not a regular file")
            seconds, nanoseconds = self._mtime
            self.tag = f"{seconds:x}.{nanoseconds:x}-{self.size:x}"
        except BaseException:
            self._session.destroy()
            raise

    def _look(self, stop: Callable[[], bool]) -> tuple[int, int, tuple[int, int]]:
        found: list[tuple[int, int, tuple[int, int]]] = []

        def take(_status: int, data: int | None) -> None:
            if data:
                status = _Stat64.from_address(data)
                found.append((status.mode, status.size, (status.mtime, status.mtime_nsec)))

        self._session.call("nfs_fstat64_async", self._file, take=take, stop=stop)
        if not found:
            raise ElsewhereError("the server says nothing about it")
        return found[0]

    def close(self) -> None:
        """Close it, politely if the server answers soon."""
        try:
            self._session.call("nfs_close_async", self._file, seconds=_CLOSE_SECONDS)
        except ElsewhereError:
            pass
        finally:
            self._session.destroy()

    def abandon(self) -> None:
        """Close it without a word to the server."""
        self._session.destroy()

    def read_into(self, position: int, view: memoryview, stop: Callable[[], bool]) -> int:
        """Some bytes at *position*; 0 only behind the end."""
        count = min(len(view), _READ_BYTES)
        target = (ctypes.c_char * count).from_buffer(view)

        def take(status: int, data: int | None) -> None:
            if data and 0 < status <= count:
                ctypes.memmove(target, data, status)

        return self._session.call(
            "nfs_pread_async", self._file, position, count, take=take, stop=stop,
            seconds=_READ_SECONDS,
        )  # fmt: skip

    def copy_into(self, fd: int, position: int, count: int) -> None:
        """The kernel has no part in this."""
        del fd, position, count

    def refuse_changed(self) -> None:
        """Raises :class:`ElsewhereError` when the server says that it was written to."""
        _, size, mtime = self._look(_never)
        if (size, mtime) != (self.size, self._mtime):
            raise ElsewhereError("was changed while it was being copied")


def _opened(address: NfsAddress, server: str, stop: Callable[[], bool]) -> tuple[_Session, int]:
    told: ElsewhereError | None = None
    for version in (4, 3):
        session = _Session(version, address.port)
        try:
            session.call(
                "nfs_mount_async", server.encode(), os.fsencode(address.directory), stop=stop
            )
            return session, session.open(os.fsencode("/" + address.name), stop)
        except ElsewhereError as error:
            session.destroy()
            # A refusal says more than that the other version is not spoken.
            if told is None or error.kind is FailureKind.FINAL:
                told = error
            if stop() or isinstance(error, _SilentError):
                break
        except BaseException:
            session.destroy()
            raise
    assert told is not None
    raise told


class _Session:
    """One context of the library: a server, mounted as the library calls it."""

    def __init__(self, version: int, port: int | None) -> None:
        self._library = _library()
        self._context = self._library.nfs_init_context()
        if not self._context:
            raise ElsewhereError("no memory for another NFS session", FailureKind.TRANSIENT)
        self._library.nfs_set_autoreconnect(self._context, 0)
        if port is not None:
            # The only way in that the library has for it.
            url = self._library.nfs_parse_url_incomplete(
                self._context, b"nfs://x/?nfsport=%d" % port
            )
            if url:
                self._library.nfs_destroy_url(url)
        self._library.nfs_set_version(self._context, version)
        # Its own is of the process and the second; to a server, one that comes again under the
        # same name has lost all that it had open (RFC 7530 section 9.1.1).
        name, verifier = f"ddfs {secrets.token_hex(12)}", secrets.token_hex(4)
        self._library.nfs4_set_client_name(self._context, name.encode())
        self._library.nfs4_set_verifier(self._context, verifier.encode())
        # The library keeps the pointer as long as a call is out, and calls it when destroyed.
        self._callback = _CALLBACK(self._answered)
        self._status: int | None = None
        self._take: Callable[[int, int | None], None] | None = None
        self._message = ""

    def destroy(self) -> None:
        """Free it; what is under way is forgotten. Twice is no mistake."""
        context, self._context = self._context, None
        self._take = None
        if context:
            self._library.nfs_destroy_context(context)

    def open(self, path: bytes, stop: Callable[[], bool]) -> int:
        """The handle of a file, opened for reading."""
        handles: list[int] = []

        def take(status: int, data: int | None) -> None:
            if status == 0 and data:
                handles.append(data)

        self.call("nfs_open_async", path, os.O_RDONLY, take=take, stop=stop)
        if not handles:
            raise ElsewhereError("the server did not open it")
        return handles[0]

    def call(
        self,
        name: str,
        *arguments: Any,
        take: Callable[[int, int | None], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        seconds: float = _OPEN_SECONDS,
    ) -> int:
        """The status of one asynchronous call, 0 or more; *take* gets it, and the data, first.

        Raises :class:`ElsewhereError`; after that the session is good for ``destroy`` alone.
        """
        if not self._context:
            raise ElsewhereError("the NFS session is over", FailureKind.TRANSIENT)
        self._status, self._take, self._message = None, take, ""
        function = getattr(self._library, name)
        if function(self._context, *arguments, self._callback, None) != 0:
            raise self._failed()
        deadline = time.monotonic() + seconds
        while self._status is None:
            self._serve()
            if self._status is None and stop():
                raise ElsewhereError("it was ended", FailureKind.TRANSIENT)
            if self._status is None and time.monotonic() > deadline:
                raise _SilentError(
                    f"the NFS server did not answer within {seconds:.0f} s", FailureKind.TRANSIENT
                )
        self._take = None
        if self._status < 0:
            raise self._refused(-self._status)
        return self._status

    def _serve(self) -> None:
        """Let the library do what there is to do, or wait a moment."""
        poll = select.poll()
        fd = self._library.nfs_get_fd(self._context)
        happened = 0
        if fd >= 0:
            poll.register(fd, self._library.nfs_which_events(self._context))
            for _, events in poll.poll(_STEP_SECONDS * 1000):
                happened = events
        else:
            time.sleep(_STEP_SECONDS)
        if self._library.nfs_service(self._context, happened) < 0 and self._status is None:
            raise self._failed()

    def _answered(self, status: int, _context: int, data: int | None, _private: int) -> None:
        """What the library calls; nothing may be raised in here."""
        if status < 0 and data:
            self._message = ctypes.string_at(data).decode(errors="replace")
        elif self._take is not None:
            self._take(status, data)
        self._status = status

    def _failed(self) -> ElsewhereError:
        text = self._library.nfs_get_error(self._context)
        message = text.decode(errors="replace") if text else "no answer"
        return ElsewhereError(f"NFS: {_in_one_line(message)}", FailureKind.TRANSIENT)

    def _refused(self, number: int) -> ElsewhereError:
        """The server's word, or a connection that broke."""
        detail = _in_one_line(self._message)
        if number == errno.EFAULT:
            # What the library says of a server that it did not come to.
            text = self._library.nfs_get_error(self._context) or b""
            return ElsewhereError(
                "the NFS server cannot be connected to "
                f"({detail or _in_one_line(text.decode(errors='replace')) or 'no reason given'})",
                FailureKind.TRANSIENT,
            )
        reason = os.strerror(number).lower() if number < 1000 else f"status {number}"
        is_final = number in _FINAL
        kind = FailureKind.FINAL if is_final else FailureKind.TRANSIENT
        return ElsewhereError(f"NFS: {reason}" + (f" ({detail})" if detail else ""), kind)


# What will not become better within a fetch.
_FINAL: Final = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.EINVAL,
    }
)


def _never() -> bool:
    return False


def _in_one_line(text: str) -> str:
    plain = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in plain)[:160]
