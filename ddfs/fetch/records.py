"""TLS records, as many at once as are there.

Python's ssl gives one record of 16 KiB for each call, and takes and drops the interpreter's
lock for each: at 400 MiB/s that is 25,000 times a second in each of several threads, which
wait for each other. ``records.c`` calls the same function of the same OpenSSL in a loop. It
is compiled when ddfs is installed; where that was not possible, or where this Python keeps
its connections otherwise than those that are known, everything is read through ssl as before.
"""

from __future__ import annotations

import errno
import functools
import logging
import ssl
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_log = logging.getLogger(__name__)

LIBRARY: Final = Path(__file__).with_name("records.so.1")

# One visit: no longer away from whoever wants to cut or abort than a larger write takes.
VISIT_BYTES: Final = 256 * 1024

# Words of the object to look at: its head has two, or a few more in other builds of Python.
_WORDS: Final = 10


class Records:
    """What comes over one connection. Only for the thread that uses its socket."""

    __slots__ = ("_connection", "_failure", "_kept", "_read", "_sock")

    def __init__(
        self, sock: ssl.SSLSocket, read: Callable[[int, Any, int], int], connection: int
    ) -> None:
        self._sock = sock
        self._read = read
        self._connection = connection
        self._failure: OSError | None = None
        self._kept = b""

    def read_into(self, view: memoryview) -> int:
        """Bytes that are here already, into *view*, which is not empty; how many.

        Never blocks. 0 says nothing of why there are none: ask the socket itself, which will.
        Raises what that would, OSError.
        """
        import ctypes

        if self._failure is not None:
            try:
                raise self._failure
            finally:
                # It has the frames that it passes now, and with them the caller's memory.
                self._failure = None
        if getattr(self._sock, "_sslobj", self) is None:
            # OpenSSL's object has gone with it.
            raise OSError(errno.EBADF, "the connection is closed")
        if self._kept:
            view[:1], self._kept = self._kept, b""
            return 1
        count = min(len(view), VISIT_BYTES)
        start = ctypes.byref(ctypes.c_char.from_buffer(view))
        count = self._read(self._connection, start, count)
        if count < 0:
            # OpenSSL keeps the reason for the thread, whose next connection is not to find it.
            self._failure = self._reason()
        return abs(count)

    def _reason(self) -> OSError | None:
        """Why the connection is broken; None if it is not, and what that took is kept."""
        try:
            # An error that somebody else left to this thread looks like one of this connection.
            self._kept = self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError as error:
            return error.with_traceback(None)
        return None


def records_of(sock: ssl.SSLSocket) -> Records | None:
    """What reads from *sock*, as long as that lives; None where it cannot be done."""
    read = _reader(LIBRARY)
    connection = _connection_of(sock) if read is not None else None
    if read is None or connection is None:
        return None
    return Records(sock, read, connection)


@functools.cache
def _reader(path: Path) -> Callable[[int, Any, int], int] | None:
    """The loop in the library at *path*, around what Python's ssl itself reads with."""
    try:
        import _ssl
        import ctypes

        library = ctypes.CDLL(str(path))
        openssl = ctypes.CDLL(_ssl.__file__)
        loop: Any = library.ddfs_read_records
        loop.restype = ctypes.c_int
        loop.argtypes = (*[ctypes.c_void_p] * 4, ctypes.c_int)
        found = (openssl.SSL_read, openssl.SSL_get_error)
        return functools.partial(loop, *(ctypes.cast(each, ctypes.c_void_p) for each in found))
    except (OSError, AttributeError, ImportError) as error:
        _log.debug("TLS records are read one by one: %s", error)
        return None


def _connection_of(sock: ssl.SSLSocket) -> int | None:
    """OpenSSL's own object, which Python keeps between two that are known; None without it.

    CPython's ``PySSLSocket`` (Modules/_ssl.c) has had, since 3.5, a weak reference to the
    socket, ``SSL *``, and the context, one behind the other. Where they are not found so,
    nothing is taken for what it may not be.
    """
    import ctypes  # slow to import, and of use for large bodies alone

    inner: Any = getattr(sock, "_sslobj", None)
    if inner is None or type(inner).__basicsize__ < _WORDS * ctypes.sizeof(ctypes.c_void_p):
        return None
    words = (ctypes.c_void_p * _WORDS).from_address(id(inner))
    # One for all who have no use for a callback, as Python's own has none.
    before, behind = weakref.ref(sock), sock.context
    for at in range(1, _WORDS - 1):
        if (words[at - 1], words[at + 1]) == (id(before), id(behind)):
            return words[at]
    return None
