"""Drives tests/fuse/server.py, and the programs that use its mount."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from ddfs.fuse import mounts

SERVER = Path(__file__).with_name("server.py")

# How long anything that should happen at once may take on a busy machine.
PATIENCE_SECONDS = 90.0


class Driver:
    """A server process, its mount, and commands to it by method name: ``driver("add", 1, …)``."""

    def __init__(self, mountpoint: Path, *switches: str) -> None:
        self.mountpoint = mountpoint
        self.templates = mountpoint / "templates"
        self.log = mountpoint.with_name(f"{mountpoint.name}.log")
        self._errors = self.log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), str(mountpoint), *switches],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.greeting = self.hear()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"{}")

    def hear(self, timeout: float = PATIENCE_SECONDS) -> dict[str, Any]:
        answer = json.loads(self._lines.get(timeout=timeout))
        assert isinstance(answer, dict)
        return answer

    def send(self, command: str, *arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, arguments]).encode() + b"\n")
        self.process.stdin.flush()

    def __call__(self, command: str, *arguments: Any, timeout: float = PATIENCE_SECONDS) -> Any:
        self.send(command, *arguments)
        answer = self.hear(timeout)
        assert "answer" in answer, (command, answer)
        return answer["answer"]

    def path(self, name: str) -> str:
        return str(self.templates / name)

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        return wait_for(condition)

    def close(self) -> None:
        """End it in an orderly way."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)

    def dispose(self) -> None:
        """Leave nothing behind, whatever has happened."""
        if self.process.poll() is None:
            self.process.kill()
            mount = mounts.top(self.mountpoint)
            if mount is not None:
                mounts.abort(mount.connection_id)
            self.process.wait(PATIENCE_SECONDS)
        while mounts.top(self.mountpoint) is not None:
            with contextlib.suppress(OSError):  # the guard was faster
                mounts.unmount(self.mountpoint, lazily=True)
        self._reader.join(PATIENCE_SECONDS)
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """The first true value of *condition*; fails after *seconds*."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def run(*command: str, timeout: float = PATIENCE_SECONDS) -> subprocess.CompletedProcess[str]:
    """A program that touches the mount; never this process."""
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


class Reader:
    """A process of its own that runs a few lines of Python; ``os`` and ``path`` are there."""

    started: ClassVar[list[Reader]] = []

    def __init__(self, path: str, code: str, executable: str = sys.executable) -> None:
        self.started.append(self)
        program = f"import os, sys\npath = {path!r}\n{code}"
        self.process = subprocess.Popen(
            [executable, "-S", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def result(self, timeout: float = PATIENCE_SECONDS) -> str:
        out, err = self.process.communicate(timeout=timeout)
        return out.decode() if self.process.returncode == 0 else err.decode().splitlines()[-1]

    def is_running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_SECONDS)

    @classmethod
    def dispose(cls) -> None:
        """End all of them; the mount is gone, so none waits for it."""
        while cls.started:
            process = cls.started.pop().process
            process.kill()
            process.wait(PATIENCE_SECONDS)
            for stream in (process.stdin, process.stdout, process.stderr):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def errno_of(path: str, flags: int) -> str:
    """The name of the errno that opening *path* gives, ``ok`` without one."""
    code = (
        f"import errno\ntry:\n    os.close(os.open(path, {int(flags)}))\n    print('ok')\n"
        "except OSError as e: print(errno.errorcode[e.errno])"
    )
    return Reader(path, code).result().strip()


def missing() -> str | None:
    """What this machine lacks for a real mount."""
    if os.geteuid() != 0:
        return "mounting takes root"
    if not mounts.DEVICE.exists():
        return "there is no /dev/fuse"
    return None
