"""nginx as a mirror: real processes on loopback, each with a rate and a log of its own."""

from __future__ import annotations

import contextlib
import signal
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.processes import Process, wait_until

# One process without a master: it ends with its pid, and reads what root may read.
CONFIGURATION: Final = """\
daemon off;
master_process off;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 512; }}
http {{
    log_format counted '$status $body_bytes_sent $request_method $uri $http_range';
    access_log {work}/access.log counted;
    default_type application/octet-stream;
    types {{ application/metalink4+xml meta4; }}
    client_body_temp_path {work}/client; proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    keepalive_timeout 20; tcp_nodelay on; sendfile on;
    server {{ listen {address}:{port}; root {root}; {limit} }}
}}
"""


# Asked for by ourselves alone.
_MARK: Final = "/.mark"


@dataclass(frozen=True)
class Request:
    """One line of the access log; written when the answer has ended."""

    status: int
    bytes_sent: int
    method: str
    path: str
    range: str


class Mirror:
    """``with Mirror(work, root, …) as mirror``: serves the files in *root*.

    *rate* is in bytes a second for each connection, and a second's worth more at the start
    of each answer, as nginx counts; None is as fast as it can.
    """

    def __init__(
        self, work: Path, root: Path, *, address: str = "127.0.0.1", rate: int | None = None
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.address = address
        self.rate = rate
        self._work = work
        self._log = work / "access.log"
        self._process: Process | None = None
        self._is_paused = False
        self._marks = 0
        # Nobody else gets it, also while nginx does not run.
        self._reserved = reserved_port(address)
        self.port: int = self._reserved.getsockname()[1]

    def __enter__(self) -> Mirror:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._reserved.close()

    def start(self) -> None:
        """On the same port as before, if it was stopped."""
        configuration = self._work / "nginx.conf"
        limit = f"limit_rate {self.rate};" if self.rate else ""
        configuration.write_text(
            CONFIGURATION.format(
                work=self._work, root=self.root, address=self.address, port=self.port, limit=limit
            )
        )
        process = self._process = Process(
            ["nginx", "-c", configuration, "-p", self._work], self._work / "nginx.log"
        )
        process.wait_until(self._answers, "nginx answers")

    def stop(self) -> None:
        if self._process is not None:
            self.resume()
            self._process.close()
            self._process = None

    def url(self, name: str) -> str:
        return f"http://{self.address}:{self.port}/{name}"

    def pause(self) -> None:
        """Silent from now on: connections are still taken, by the kernel, and stay open."""
        self._is_paused = True
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
        self._is_paused = False

    def change_rate(self, rate: int | None) -> None:
        """From now on; what it was sending ends."""
        self.stop()
        self.rate = rate
        self.start()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.signal(number)

    def requests(self, name: str | None = None) -> list[Request]:
        """What was asked so far, or what was asked for *name*."""
        if self._process is not None and not self._is_paused:
            self._see_all()
        requests = [_parse(line) for line in self._lines()]
        wanted = (r for r in requests if not r.path.startswith(_MARK))
        return [r for r in wanted if name is None or r.path == f"/{name}"]

    def _see_all(self) -> None:
        """What happened to nginx before a request of our own is in its log before that."""
        self._marks += 1
        mark = f"{_MARK}{self._marks}"
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(self.url(mark[1:])).close()
        wait_until(lambda: any(f" {mark} " in line for line in self._lines()), f"{mark} is logged")

    def _lines(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def bytes_sent(self, name: str) -> int:
        return sum(r.bytes_sent for r in self.requests(name))

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), 1):
            return True
        return False


def _parse(line: str) -> Request:
    status, sent, method, path, wanted = line.split(" ", 4)
    return Request(int(status), int(sent), method, path, wanted)


def reserved_port(address: str) -> socket.socket:
    """Holds a port, until it is closed, for who asks for just that one with SO_REUSEADDR."""
    holder = socket.socket()
    holder.bind((address, 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return holder


def free_port(address: str) -> int:
    """A port that was free a moment ago: nginx takes no 0."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
