"""The daemon under a service manager: this test."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from lab.host import Host
from lab.processes import wait_until


def test_it_says_that_it_serves_stays_awake_and_ends(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(tmp_path / "notify"))
        manager.setblocking(False)
        heard: list[str] = []

        def hears(text: str) -> bool:
            try:
                while True:
                    heard.append(manager.recv(4096).decode())
            except BlockingIOError:
                return any(text in one for one in heard)

        environ = {"NOTIFY_SOCKET": os.fspath(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        with Host(tmp_path / "host", environ=environ) as host:
            host.daemon = host.spawn()
            host.daemon.wait_until(lambda: hears("READY=1"), "READY=1")
            # Whatever is ordered after the daemon finds the mount and the socket.
            assert host.is_mounted()
            assert host.socket.exists()
            heard.clear()
            wait_until(lambda: hears("WATCHDOG=1"), "WATCHDOG=1")
            assert host.stop() == 0
            assert hears("STOPPING=1")
