"""A real NFS server in user space, on ports of its own: nfs-ganesha with its VFS backend."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_CONFIGURATION: Final = """
NFS_CORE_PARAM {{ NFS_Port = {port}; Protocols = 4;
    Enable_NLM = false; Enable_RQUOTA = false; }}
NFSv4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = "{work}/recovery"; }}
EXPORT {{ Export_Id = 1; Path = {export}; Pseudo = /export; Access_Type = None;
    CLIENT {{ Clients = 127.0.0.1; Access_Type = RO; }}
    Squash = None; SecType = sys; Protocols = 4; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"""


def why_not() -> str | None:
    """Why no server can run here; None if it can."""
    if os.geteuid() != 0:
        return "nfs-ganesha's VFS backend needs root"
    if shutil.which("ganesha.nfsd") is None:
        return "nfs-ganesha is not installed (contrib/setup does that)"
    return None


class NfsServer:
    """``export`` is what ``url(path)`` serves."""

    def __init__(self, export: Path, port: int, pid: int) -> None:
        self.export = export
        self.port = port
        self._pid = pid

    def url(self, path: str) -> str:
        return f"nfs://127.0.0.1:{self.port}/export/{path}"

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It says nothing in here; its kernel still takes connections."""
        os.kill(self._pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)


@contextmanager
def nfs_server(work: Path) -> Iterator[NfsServer]:
    export = work / "export"
    for path in (export, work / "recovery"):
        path.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = work / "ganesha.conf"
    configuration.write_text(_CONFIGURATION.format(port=port, work=work, export=export))
    log = work / "log"
    process = subprocess.Popen(
        ["ganesha.nfsd", "-F", "-L", log, "-f", configuration, "-p", work / "pid"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(port, process, log)
        yield NfsServer(export, port, process.pid)
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text()[-2000:])
