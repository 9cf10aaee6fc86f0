"""Child processes with a log, and waiting with a deadline."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

# For what happens in moments on an idle machine. Waiting long costs nothing where it works, and
# a busy machine makes no test fail: how fast something is, is for contrib/bench to say.
PATIENCE_SECONDS: Final = 90.0


class LabError(Exception):
    """The surroundings of a test do not work; the text carries the end of the log."""


def wait_until(
    condition: Callable[[], object],
    what: str,
    *,
    seconds: float = PATIENCE_SECONDS,
    pause: float = 0.05,
) -> None:
    """Returns when *condition* is true; LabError with *what* when it is not in *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)


class Process:
    """A child in a session of its own, its output in *log*. Stopped by its pid, never by name."""

    def __init__(
        self, command: Sequence[str | Path], log: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.command = [str(word) for word in command]
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, None while it runs."""
        return self._popen.poll()

    def tail(self, lines: int = 20) -> str:
        """The end of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def wait_until(
        self, condition: Callable[[], object], what: str, *, seconds: float = PATIENCE_SECONDS
    ) -> None:
        """As the function; also fails, at once, when the process ends meanwhile."""

        def is_so() -> bool:
            if self.returncode is not None:
                raise LabError(f"{self.command[0]} ended with {self.returncode}")
            return bool(condition())

        try:
            wait_until(is_so, what, seconds=seconds)
        except LabError as error:
            raise LabError(f"{error}\n{self.tail()}") from None

    def signal(self, number: int) -> None:
        if self.returncode is None:
            self._popen.send_signal(number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        return self._popen.wait(seconds)

    def stop(self) -> int:
        """SIGTERM; SIGKILL and LabError when that does not end it in time."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise LabError(
                f"{self.command[0]} did not end in {PATIENCE_SECONDS:g} s\n{self.tail()}"
            ) from None

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.signal(signal.SIGKILL)
        self._popen.wait()

    def close(self) -> None:
        """Ends it whatever it takes, quietly."""
        with contextlib.suppress(LabError):
            self.stop()
