"""What contrib/test runs, one step after the other, with the time that each took.

All steps run even when one failed, so that a run shows everything that is wrong.

They run in groups side by side: much of their time is waiting, for virtual machines, mirrors and
windows. One after the other took 25 minutes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent

# A test that hangs ends the run; the longest one takes a minute, on a machine of its own.
HANG_SECONDS: Final = 300

_NAME_LENGTH: Final = 60

# What runs side by side where nobody names tests, each about a third of the time: system tests,
# which wait most of theirs; what computes most; and the rest, with the last ones of the alphabet.
_WAITING: Final = sorted(
    f"tests/system/{path.name}" for path in (TOP / "tests/system").glob("test_system_[a-r]*.py")
)
_COMPUTING: Final = [
    f"tests/{name}" for name in ("contrib", "fetch", "keeping", "metalink", "spool")
]
_APART: Final = [f"--ignore={path}" for path in (*_WAITING, *_COMPUTING)]
GROUPS: Final = [["tests", *_APART], _COMPUTING, _WAITING]

sys.path.insert(0, str(TOP / "tests" / "system"))

from lab.scratch import scratch_directory  # noqa: E402 (the line above makes it importable)


def main(pytest_arguments: list[str]) -> int:
    if os.geteuid() != 0:
        print("contrib/test: run it as root: the tests mount file systems", file=sys.stderr)
        return 2
    # A shell that runs this in the background has it ignored, and some tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sources = ["ddfs", "tests", "contrib"]
    failed = [
        name
        for name, *command in (
            ["ruff check", "ruff", "check", *sources],
            ["ruff format", "ruff", "format", "--check", *sources],
            ["mypy", "mypy"],
            ["codespell", "codespell"],
        )
        if not _step(name, command)
    ]
    began = time.monotonic()
    with scratch_directory() as scratch:
        groups = [pytest_arguments] if pytest_arguments else GROUPS
        failed += _pytest(groups, scratch, failed)
        _report_coverage(scratch, len(groups))
    outcome = f"FAILED: {', '.join(failed)}" if failed else "all ok"
    print(f"contrib/test: {outcome}; the tests took {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


def _step(name: str, command: list[str]) -> bool:
    began = time.monotonic()
    code = subprocess.run([BIN / command[0], *command[1:]], cwd=TOP, check=False).returncode
    outcome = "ok" if code == 0 else f"FAILED with {code}"
    print(f"contrib/test: {name}: {outcome}, {time.monotonic() - began:.1f} s", flush=True)
    return code == 0


def _pytest(groups: list[list[str]], scratch: Path, failed: list[str]) -> list[str]:
    """Runs the groups at once; returns those that failed. The last one speaks while it runs,
    each of the others when all are done.
    """
    if failed:
        print(f"contrib/test: failed so far: {', '.join(failed)}", flush=True)
    with contextlib.ExitStack() as stack:
        runs = [
            # Short names: sockets lie below them.
            stack.enter_context(_Group(arguments, scratch / str(number), number + 1 < len(groups)))
            for number, arguments in enumerate(groups)
        ]
        return [run.name for run in reversed(runs) if not run.passed()]


class _Group(contextlib.AbstractContextManager["_Group"]):
    """One pytest, with namespaces and a scratch directory of its own."""

    def __init__(self, arguments: list[str], scratch: Path, is_quiet: bool) -> None:
        self.name = f"pytest {' '.join(arguments)}".strip()
        self.name = self.name if len(self.name) < _NAME_LENGTH else f"{self.name[:_NAME_LENGTH]}…"
        scratch.mkdir()
        scratch.chmod(0o755)  # QEMU's user enters
        self._output = (scratch / "output").open("w+b") if is_quiet else None
        command = [
            *(BIN / "pytest", f"--basetemp={scratch}/pytest", "--durations=10"),
            *("-o", f"faulthandler_timeout={HANG_SECONDS}"),
            *("-o", "faulthandler_exit_on_timeout=true"),
            *("--cov", "--cov-branch", "--cov-report=", *arguments),
        ]
        environment = {
            **os.environ,
            "TMPDIR": str(scratch),
            "COVERAGE_FILE": str(scratch / "coverage"),
        }
        self._process = subprocess.Popen(
            command, cwd=TOP, env=environment, stdout=self._output, stderr=self._output
        )

    def passed(self) -> bool:
        """Waits for it, and prints what it said."""
        code = self._process.wait()
        if self._output is not None:
            self._output.seek(0)
            sys.stdout.flush()
            shutil.copyfileobj(self._output, sys.stdout.buffer)
        outcome = "ok" if code == 0 else f"FAILED with {code}"
        print(f"contrib/test: {self.name}: {outcome}", flush=True)
        return code == 0

    def __exit__(self, *_: object) -> None:
        """Nobody waits any more: whatever still runs is ended, with all that it started."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if self._output is not None:
            self._output.close()


def _report_coverage(scratch: Path, groups: int) -> None:
    environment = {**os.environ, "COVERAGE_FILE": str(scratch / "coverage")}
    files = [str(scratch / str(number) / "coverage") for number in range(groups)]
    for command in (["combine", "--quiet", *files], ["report", "--skip-covered"]):
        subprocess.run([BIN / "coverage", *command], cwd=TOP, env=environment, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
