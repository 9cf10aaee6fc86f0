"""One host's ddfs: settings, directories and a daemon in a directory of the lab."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lab.processes import LabError, Process, wait_until

TOP: Final = Path(__file__).resolve().parents[3]

# The command of the environment that runs us.
DDFS: Final = Path(sys.executable).with_name("ddfs")

# Mirrors are on loopback; the demo's user may have some in a private network.
PRIVATE_NETWORKS: Final = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")

# The longest thing that a command does in here is a fetch of some seconds.
COMMAND_SECONDS: Final = 120


class Host:
    """``with Host(directory) as host``: settings are written; :meth:`serve` starts the daemon.

    ``images`` is the primary storage, ``templates`` the template pool. *primary* are more lines
    for the former's settings, *more* is all else.
    """

    def __init__(
        self,
        directory: Path,
        *,
        gate_wait: float = 60.0,
        gate_then: str = "refuse",
        images: Path | None = None,
        primary: str = "",
        more: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.mountpoint = directory / "mnt"
        self.templates = self.mountpoint / "templates"
        self.state = directory / "state"
        self.images = images or directory / "images"
        self.vms = directory / "vms"
        self.socket = directory / "run" / "ddfs.sock"
        self.settings = directory / "ddfs.toml"
        self.log = directory / "ddfs.log"
        self.daemon: Process | None = None
        self.command = [str(DDFS), "--config", str(self.settings)]
        self._environ = dict(environ or {})
        for path in (directory, self.images, self.vms):
            path.mkdir(parents=True, exist_ok=True)
        self.settings.write_text(
            f'mountpoint = "{self.mountpoint}"\nstate_dir = "{self.state}"\n'
            f'socket = "{self.socket}"\n'
            f'[primary.default]\npath = "{self.images}"\n{primary}'
            f'[gate]\nwait = {gate_wait}\nthen = "{gate_then}"\n'
            f"[network]\nallow_networks = {json.dumps(PRIVATE_NETWORKS)}\n{more}"
        )

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        if self.daemon is not None:
            self.daemon.close()
        # A daemon that had to be killed leaves its mount for the next one to find.
        if self.is_mounted():
            subprocess.run(["umount", "-n", "-l", self.mountpoint], check=False)

    def spawn(self) -> Process:
        """A daemon that may or may not come up."""
        return Process([*self.command, "serve"], self.log, self._environ)

    def serve(self) -> Process:
        """The daemon; returns when it answers."""
        process = self.daemon = self.spawn()
        process.wait_until(self._answers, "ddfs serve answers")
        return process

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        if self.daemon is None:
            raise LabError("no daemon runs")
        daemon, self.daemon = self.daemon, None
        return daemon.stop()

    def kill(self) -> None:
        """``kill -9``."""
        if self.daemon is None:
            raise LabError("no daemon runs")
        daemon, self.daemon = self.daemon, None
        daemon.signal(signal.SIGKILL)
        daemon.wait()

    def ddfs(
        self, *arguments: str | Path, check: bool = True, seconds: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """One command; LabError with what it said when it failed and *check* is true."""
        result = subprocess.run(
            [*self.command, *arguments],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env={**os.environ, **self._environ},
        )
        if check and result.returncode != 0:
            said = f"{result.stdout}{result.stderr}".strip()
            raise LabError(f"{shlex.join(map(str, ['ddfs', *arguments]))}: {said}\n{self.tail()}")
        return result

    def api(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """One request to the control API, without the project's own client."""
        connection = _UnixConnection(self.socket)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def api_json(self, method: str, path: str, body: object = None) -> Any:
        status, data = self.api(method, path, body)
        if status >= 400:
            raise LabError(f"{method} {path}: {status} {data.decode(errors='replace')}")
        return json.loads(data) if data else None

    def tail(self, lines: int = 30) -> str:
        """The end of the daemon's log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def is_mounted(self) -> bool:
        """Whether anything is mounted on the mountpoint. Never asks that file system itself."""
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            return any(line.split(" ", 5)[4] == str(self.mountpoint) for line in table)

    def wait_for_state(self, name: str, state: str) -> None:
        wait_until(lambda: self.template(name)["state"] == state, f"{name} is {state}")

    def template(self, name: str) -> dict[str, Any]:
        """What the API says about a template."""
        answer: dict[str, Any] = self.api_json("GET", f"/v1/templates/{name}")
        return answer

    def published(self, name: str) -> Path:
        """The file in primary storage; LabError when there is none."""
        path = self.template(name)["published_path"]
        if path is None:
            raise LabError(f"{name} is not published")
        return Path(path)

    def hook(self) -> str:
        """The hook script as an operator of this host would install it; see hooks/qemu."""
        text = (TOP / "hooks" / "qemu").read_text()
        for name, value in (("ddfs_home", TOP), ("ddfs_config", self.settings)):
            text, count = re.subn(rf"(?m)^{name}=.*$", f"{name}='{value}'", text)
            if count != 1:
                raise LabError(f"hooks/qemu has {count} lines {name}=, not one")
        return text

    def _answers(self) -> bool:
        try:
            return self.api("GET", "/v1/status")[0] == 200
        except OSError:
            return False


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("ddfs", timeout=COMMAND_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
