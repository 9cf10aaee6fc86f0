"""Hypercorn's HTTP on trio, on the two control sockets.

Hypercorn's ``serve()`` is not used: it would own the signals' fate, the sockets' files and
the listening, and it sends under a shield, so that one client that stops reading its answer
would keep the daemon from ending. Here its protocol runs on connections that this module
accepts, counts and, at the end, cuts off.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import trio
from fastapi import APIRouter, FastAPI
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from ddfs.control.api import make_app, make_reader_app
from ddfs.control.service import Service
from ddfs.control.sockets import OWNER_MODE, READER_MODE, listening

log = logging.getLogger(__name__)

# A waiting hook or command has one connection each; more of them than a host has domains.
MAX_CONNECTIONS: Final = 1024

# Everybody on the host may connect to the reader socket, and must not be able to use up the
# daemon's file descriptors.
MAX_READER_CONNECTIONS: Final = 64

# Between two requests on one connection, and before the first. A busy host may stop a client for
# some seconds between connecting and writing.
IDLE_SECONDS: Final = 30.0


async def serve(
    service: Service,
    path: Path,
    reader_path: Path,
    group: str | None = None,
    *,
    more: Sequence[APIRouter] = (),
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answers on both sockets until it is cancelled; started once both can be connected to.

    *group* may use the first, and everybody the second.
    Raises what :func:`ddfs.control.sockets.listening` raises, before it has started. When
    cancelled, requests that are being served are cancelled too and their connections
    closed, at once and whatever the other side does; both socket files are removed.
    """
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(listening(path, OWNER_MODE, group))
        reader_sock = stack.enter_context(listening(reader_path, READER_MODE))
        async with trio.open_nursery() as nursery:
            everything = _Endpoint(make_app(service, more), MAX_CONNECTIONS)
            reading = _Endpoint(make_reader_app(service), MAX_READER_CONNECTIONS)
            nursery.start_soon(everything.run, sock)
            nursery.start_soon(reading.run, reader_sock)
            task_status.started()


class _Endpoint:
    """An application on one listening socket."""

    def __init__(self, app: FastAPI, max_connections: int) -> None:
        # FastAPI's own types for ASGI messages are looser than Hypercorn's.
        self._app = wrap_app(cast("Any", app), 0, "asgi")
        self._max_connections = max_connections
        self._context = WorkerContext(None)
        self._connections: set[trio.SocketStream] = set()
        self._config = Config()
        self._config.errorlog = log
        self._config.keep_alive_timeout = IDLE_SECONDS
        self._config.include_server_header = False

    async def run(self, sock: socket.socket) -> None:
        """Accepts until cancelled."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            try:
                await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)
            finally:
                self._hang_up()

    async def _serve(self, stream: trio.SocketStream) -> None:
        if len(self._connections) >= self._max_connections:
            log.warning("%d connections are open: one more is refused", self._max_connections)
            await stream.aclose()
            return
        self._connections.add(stream)
        try:
            # Its annotation names an SSLStream; it asks what the stream is when it runs.
            plain = cast("Any", stream)
            await TCPServer(self._app, self._config, self._context, ConnectionState({}), plain)
        except Exception:
            # One connection's trouble is not the daemon's.
            log.exception("a connection to the control socket failed")
        finally:
            self._connections.discard(stream)

    def _hang_up(self) -> None:
        # A send that waits, shielded, for a client that does not read then fails.
        for stream in self._connections:
            with contextlib.suppress(OSError):
                stream.socket.shutdown(socket.SHUT_RDWR)
