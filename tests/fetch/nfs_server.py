"""Real NFS servers in user space: nfs-ganesha with its VFS backend.

Version 4 is on a port of its own. Version 3 is found by the portmapper, on its well-known port:
it is in a network of its own, where only what :meth:`Version3Server.run` runs can reach it.
"""

from __future__ import annotations

import os
import re
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

_VERSION_3: Final = (
    _CONFIGURATION.replace("Protocols = 4", "Protocols = 3")
    .replace("Enable_NLM", "mount_path_pseudo = true; Enable_NLM")
    .replace("NFS_Port = {port}", "NFS_Port = 2049")
)

# Whose option for it older ones refuse as unknown.
_FIRST_WITH_FLUSHER: Final = 6

# The portmapper's socket and the server's notes would lie in /run.
_START_VERSION_3: Final = """
mount -t tmpfs none /run && ip link set lo up && rpcbind -w && exec "$@"
"""


def _for_its_release(configuration: str) -> str:
    """Newer ones want a privilege that containers lack, unless they are told to do without."""
    said = subprocess.run(["ganesha.nfsd", "-v"], capture_output=True, text=True, check=False)
    release = re.search(r"V(\d+)\.", said.stdout + said.stderr)
    if release is None or int(release[1]) < _FIRST_WITH_FLUSHER:
        return configuration
    return configuration.replace("{ NFS_Port", "{ allow_set_io_flusher_fail = true; NFS_Port")


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
    text = _CONFIGURATION.format(port=port, work=work, export=export)
    configuration.write_text(_for_its_release(text))
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


class Version3Server:
    """``export`` is what ``nfs://127.0.0.1/export/`` serves to the commands that it runs."""

    def __init__(self, export: Path, network: Path) -> None:
        self.export = export
        self._network = network

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--net={self._network}", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )


@contextmanager
def version_3_server(work: Path) -> Iterator[Version3Server]:
    export = work / "export"
    for path in (export, work / "recovery"):
        path.mkdir()
    configuration, log = work / "ganesha.conf", work / "log"
    configuration.write_text(_for_its_release(_VERSION_3.format(work=work, export=export)))
    apart = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    server = ("ganesha.nfsd", "-F", "-L", log, "-f", configuration, "-p", work / "pid")
    process = subprocess.Popen(
        [*apart, "sh", "-c", _START_VERSION_3, "sh", *server],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    running = Version3Server(export, Path(f"/proc/{process.pid}/ns/net"))
    try:
        _wait_for_version_3(running, process, log)
        yield running
    finally:
        process.kill()
        process.wait()


def _wait_for_version_3(
    server: Version3Server, process: subprocess.Popen[bytes], log: Path
) -> None:
    ours, theirs = Path("/proc/self/ns/net"), Path(f"/proc/{process.pid}/ns/net")
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:] if log.exists() else "no log"
        # The mount daemon is the last that the portmapper hears of.
        if ours.readlink() != theirs.readlink() and (
            server.run("rpcinfo", "-t", "127.0.0.1", "mountd", "3").returncode == 0
        ):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text()[-2000:])


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text()[-2000:])
