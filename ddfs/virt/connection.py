"""One connection to libvirtd, used from one thread at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import libvirt
import trio

from ddfs import errors

T = TypeVar("T")

# What we call "libvirtd does not answer", whatever libvirt itself says of it: the code of a
# missing socket, VIR_ERR_SYSTEM_ERROR, is also that of a missing directory.
_DOWN: Final = libvirt.VIR_ERR_NO_CONNECT

# It answers, and says no: that does not pass by waiting.
_REFUSALS: Final = {
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_INVALID_ARG,
}

_CLOSE_SECONDS: Final = 1.0


def is_down(error: errors.LibvirtError) -> bool:
    """Whether *error* says that libvirtd is not running or went away in the middle."""
    return bool(error.code == _DOWN)


class Libvirt:
    """libvirt at *uri*, connected when first used and again when the connection is dead.

    There is no keepalive. It needs an event loop of libvirt's own in one more thread, and it
    would break a connection that only waits: while a hook holds a domain, libvirtd does not
    answer for seconds, and rightly so. A libvirtd that ends closes its socket, which the
    next call notices.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        # One: libvirt calls can block for minutes, and must not take the threads of others.
        self._limiter = trio.CapacityLimiter(1)
        self._connection: libvirt.virConnect | None = None
        # Without a handler libvirt prints every error to standard error.
        libvirt.registerErrorHandler(_ignore, None)

    async def call(self, function: Callable[[libvirt.virConnect], T]) -> T:
        """What *function* makes of the connection, run in a thread; calls wait for each other.

        Raises :class:`errors.LibvirtError` with libvirt's code; see :func:`is_down`. A
        cancelled call leaves at once and *function* goes on in its thread: what it asked of
        libvirt may happen or not, and the next call waits for it.
        """
        return await trio.to_thread.run_sync(
            self._run, function, limiter=self._limiter, abandon_on_cancel=True
        )

    async def close(self) -> None:
        """Close the connection, unless a call still hangs in it. The next call opens another."""
        with trio.move_on_after(_CLOSE_SECONDS) as scope:
            scope.shield = True
            await trio.to_thread.run_sync(self._drop, limiter=self._limiter, abandon_on_cancel=True)

    def _run(self, function: Callable[[libvirt.virConnect], T]) -> T:
        connection = self._connected()
        try:
            return function(connection)
        except libvirt.libvirtError as error:
            if not _is_alive(connection):
                self._drop()
                raise _unreachable(self.uri, error) from error
            raise _translated(error) from error

    def _connected(self) -> libvirt.virConnect:
        """A connection that has just answered.

        isAlive() alone does not do: without an event loop nobody notices that the other end
        was closed, and the first call after a restart of libvirtd would fail. This question
        costs 0.1 ms and takes no lock in libvirtd.
        """
        if self._connection is not None:
            try:
                self._connection.getLibVersion()
            except libvirt.libvirtError:
                self._drop()
            else:
                return self._connection
        try:
            self._connection = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise _unreachable(self.uri, error) from error
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()


@contextlib.contextmanager
def opened(uri: str) -> Iterator[libvirt.virConnect]:
    """A connection for what takes long, in the caller's thread, closed behind it.

    What libvirt says in the block comes out as :class:`errors.LibvirtError`.
    """
    libvirt.registerErrorHandler(_ignore, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise _unreachable(uri, error) from error
    try:
        yield connection
    except libvirt.libvirtError as error:
        raise _translated(error) from error
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


def _unreachable(uri: str, error: libvirt.libvirtError) -> errors.LibvirtError:
    if error.get_error_code() in _REFUSALS:
        return _translated(error)
    return errors.LibvirtError(
        f"libvirtd does not answer at {uri}: {_text(error)}; start it, or set "
        "libvirt.uri in the settings",
        _DOWN,
    )


def _ignore(_context: object, _error: object) -> None:
    """The error comes as an exception too."""


def _is_alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive() == 1)
    except libvirt.libvirtError:
        return False


def _translated(error: libvirt.libvirtError) -> errors.LibvirtError:
    return errors.LibvirtError(_text(error), error.get_error_code())


def _text(error: libvirt.libvirtError) -> str:
    """Libvirt's message, in one line; a hook's own text in it has several."""
    message = error.get_error_message() or str(error)
    return " ".join(message.split())
