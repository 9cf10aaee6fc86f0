"""Tells the service manager how the daemon is: sd_notify(3)'s datagrams, a line each.

The pings of the watchdog are sent by a task of the event loop, the one that answers the
mount and the hook: a loop that is frozen sends none, and systemd ends and starts the daemon.
Without ``NOTIFY_SOCKET`` in the environment nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Final, Self

import trio

log = logging.getLogger(__name__)

# sd_watchdog_enabled(3) asks for half of the time-out; a third lets one datagram get lost.
_PINGS_PER_TIMEOUT: Final = 3


class Supervisor:
    """Whoever started the daemon and wants to know how it is; nobody where *address* is None.

    ``watchdog_seconds`` is the time after which it takes silence for death, None for never.
    Sending never blocks and never raises: what the manager does not take is lost, and the
    daemon serves without it.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None) -> None:
        self._address = address
        self._watchdog_seconds = watchdog_seconds if address else None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """From ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``; what is malformed, or
        meant for another process, is passed over.
        """
        address = environment.get("NOTIFY_SOCKET") or None
        # A path, or @ and a name without one (unix(7)).
        if address is not None and address[0] not in "/@":
            address = None
        meant_for = environment.get("WATCHDOG_PID") or str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "")
        is_watched = meant_for == str(os.getpid()) and microseconds.isdecimal()
        seconds = int(microseconds) / 1e6 if is_watched else 0
        return cls(address, seconds or None)

    def ready(self, status: str) -> None:
        """The daemon serves: what was ordered after it may start now."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """The daemon ends; it is not watched any more."""
        self._send("STOPPING=1\nSTATUS=ending")

    async def keep_awake(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Ping until cancelled, or return at once where nobody watches."""
        task_status.started()
        if self._watchdog_seconds is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await trio.sleep(self._watchdog_seconds / _PINGS_PER_TIMEOUT)

    def _send(self, text: str) -> None:
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), address)
        except OSError as error:
            log.debug("%s: %s", self._address, error)
