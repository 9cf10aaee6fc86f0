"""The mirrors of a case: shaped ones, or nginx as fast as it can, with or without TLS."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, Protocol

import trustme
from lab.processes import LabError, Process
from shaped import Counts, Mirror

SHAPED: Final = Path(__file__).resolve().parent / "shaped.py"

# A process that does not answer for so long is broken.
ANSWER_SECONDS: Final = 10.0

# nginx writes its log when an answer has ended, a moment after the client has seen it.
LOG_SECONDS: Final = 0.2

# One process without a master for each mirror: it ends with its pid, and reads what root may.
NGINX: Final = """\
daemon off;
master_process off;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 512; }}
http {{
    log_format counted '$request_method $body_bytes_sent';
    access_log {work}/access.log counted;
    default_type application/octet-stream;
    client_body_temp_path {work}/client; proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    keepalive_timeout 20; sendfile on; tcp_nopush on;
    server {{ listen {address}:{port}{tls}; root {root}; }}
}}
"""
NGINX_TLS: Final = """ ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate};
        ssl_protocols TLSv1.2 TLSv1.3"""


class Mirrors(Protocol):
    """Mirrors that count."""

    urls: list[str]

    def reset(self) -> None:
        """Forget what was counted."""

    def counts(self) -> list[Counts]:
        """What was counted, mirror by mirror."""


class ShapedMirrors:
    """Mirrors of ``shaped.py``, all in one process."""

    def __init__(self, mirrors: Sequence[Mirror]) -> None:
        specification = json.dumps([asdict(mirror) for mirror in mirrors])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", SHAPED, specification],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.urls: list[str] = self._read()

    def _read(self) -> list:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError("the shaped mirrors ended")
        return json.loads(line)

    def _ask(self, word: str) -> list[Counts]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        return [Counts(**fields) for fields in self._read()]

    def reset(self) -> None:
        self._ask("reset")

    def counts(self) -> list[Counts]:
        return self._ask("counts")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class NginxMirrors:
    """*count* nginx processes, each on an address of its own."""

    def __init__(self, work: Path, root: Path, count: int, certificate: Path | None = None) -> None:
        work.mkdir()
        self.urls = []
        self._logs: list[Path] = []
        self._offsets = [0] * count
        self._processes: list[Process] = []
        for number in range(count):
            self._start(work / str(number), root, f"127.0.0.{11 + number}", certificate)

    def _start(self, work: Path, root: Path, address: str, certificate: Path | None) -> None:
        work.mkdir()
        with socket.socket() as probe:
            probe.bind((address, 0))
            port = probe.getsockname()[1]
        tls = NGINX_TLS.format(certificate=certificate) if certificate else ""
        configuration = work / "nginx.conf"
        configuration.write_text(
            NGINX.format(work=work, root=root, address=address, port=port, tls=tls)
        )
        process = Process(["nginx", "-c", configuration, "-p", work], work / "nginx.log")
        self._processes.append(process)
        process.wait_until(lambda: _answers(address, port), "nginx answers")
        self.urls.append(f"http{'s' if certificate else ''}://{address}:{port}")
        self._logs.append(work / "access.log")

    def reset(self) -> None:
        time.sleep(LOG_SECONDS)
        self._offsets = [log.stat().st_size for log in self._logs]

    def counts(self) -> list[Counts]:
        time.sleep(LOG_SECONDS)
        counts = []
        for log, offset in zip(self._logs, self._offsets, strict=True):
            lines = log.read_text()[offset:].splitlines()
            sent = sum(int(line.split()[1]) for line in lines)
            counts.append(Counts(requests=len(lines), bytes_sent=sent))
        return counts

    def close(self) -> None:
        for process in self._processes:
            process.close()


def _answers(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
        return True
    return False


@contextlib.contextmanager
def shaped(mirrors: Sequence[Mirror]) -> Iterator[ShapedMirrors]:
    farm = ShapedMirrors(mirrors)
    try:
        yield farm
    finally:
        farm.close()


@contextlib.contextmanager
def nginx(
    work: Path, root: Path, count: int, certificate: Path | None = None
) -> Iterator[NginxMirrors]:
    farm = NginxMirrors(work, root, count, certificate)
    try:
        yield farm
    finally:
        farm.close()


def make_certificate(directory: Path, count: int) -> tuple[Path, Path]:
    """The servers' certificate with its key, and that of the authority that signed it."""
    directory.mkdir()
    authority = trustme.CA()
    certificate = authority.issue_cert(*(f"127.0.0.{11 + number}" for number in range(count)))
    server, signer = directory / "server.pem", directory / "authority.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(server))
    authority.cert_pem.write_to_path(str(signer))
    return server, signer
