"""A host in a directory, the hook as libvirt runs it there, and daemons for it to ask."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
SCRIPT = TOP / "hooks/qemu"


@dataclass
class Host:
    """A host in a directory: settings, mountpoint, and how to call the hook there."""

    root: Path
    wait: float = 0.5
    script: Path = SCRIPT
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def mountpoint(self) -> Path:
        return self.root / "mount point"

    @property
    def templates(self) -> Path:
        return self.mountpoint / "templates"

    @property
    def settings(self) -> Path:
        return self.root / "ddfs.toml"

    @property
    def socket(self) -> Path:
        return self.root / "ddfs.sock"

    def write_settings(self, more: str = "") -> None:
        self.settings.write_text(
            f'mountpoint = "{self.mountpoint}"  # here\nsocket = "{self.socket}"\n{more}\n'
            f"[gate]\nwait = {self.wait}\n"
        )

    def run(
        self, xml: str | bytes, *, operation: str = "prepare", sub: str = "begin", name: str = "vm1"
    ) -> subprocess.CompletedProcess[str]:
        """One call with the little environment that libvirtd gives (virCommandAddEnvPassCommon)."""
        data = xml.encode() if isinstance(xml, str) else xml
        done = subprocess.run(
            [str(self.script), name, operation, sub, "-"],
            input=data,
            capture_output=True,
            timeout=90,
            env={"LC_ALL": "C", "PATH": os.environ["PATH"], **self.environ},
        )
        assert done.stdout == b""
        errors = done.stderr.decode()
        assert errors.count("\n") == (done.returncode != 0), errors
        return subprocess.CompletedProcess(done.args, done.returncode, "", errors)


def domain(*sources: Path | str, options: str = "<readonly/>") -> str:
    disks = "".join(
        f"<disk><driver type='qcow2'/><source file='{source}'/><target dev='vda'/>{options}</disk>"
        for source in sources
    )
    return f"<domain type='kvm'><name>vm1</name><devices>{disks}</devices></domain>"


def overlay(path: Path, backing: Path | str) -> Path:
    names = ["-b", str(backing), "-F", "qcow2"]
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", *names, str(path), "1M"], check=True
    )
    return path


def answer_with(body: object, status: str = "200 OK") -> Callable[[bytes], bytes]:
    raw = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    return lambda request: head.encode() + raw


@contextmanager
def daemon(path: Path, answer: Callable[[bytes], bytes | None]) -> Iterator[list[bytes]]:
    """Answers each request with what *answer* makes of it; None leaves it waiting."""
    requests: list[bytes] = []
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(90)
                request = read_request(connection)
                requests.append(request)
                reply = answer(request)
                if reply is None:
                    done.wait(60)
                else:
                    connection.sendall(reply)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0.05)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield requests
        finally:
            done.set()
            thread.join()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    length = int(re.search(rb"(?i)content-length: (\d+)", data)[1])
    while len(data.partition(b"\r\n\r\n")[2]) < length:
        data += connection.recv(65536)
    return data


def question(request: bytes) -> dict[str, object]:
    return json.loads(request.partition(b"\r\n\r\n")[2])


ALLOWED = answer_with({"allowed": True, "message": ""})
REFUSED = answer_with({"allowed": False, "message": "debian-12.qcow2 is 42 % here"})


def sealed(path: Path) -> Path:
    path.write_bytes(b"")
    path.chmod(0o444)
    return path
