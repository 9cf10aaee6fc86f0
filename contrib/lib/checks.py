"""What contrib/test runs, one step after the other, with the time that each took.

All steps run even when one failed, so that a run shows everything that is wrong; pytest is
the last, so that its summary closes the output.
"""

from __future__ import annotations

import os
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
    with scratch_directory() as scratch:
        if not _pytest(pytest_arguments, scratch, failed):
            return 1
    return 1 if failed else 0


def _step(name: str, command: list[str]) -> bool:
    began = time.monotonic()
    code = subprocess.run([BIN / command[0], *command[1:]], cwd=TOP, check=False).returncode
    outcome = "ok" if code == 0 else f"FAILED with {code}"
    print(f"contrib/test: {name}: {outcome}, {time.monotonic() - began:.1f} s", flush=True)
    return code == 0


def _pytest(arguments: list[str], scratch: Path, failed: list[str]) -> bool:
    # Said before, because pytest has the last word.
    if failed:
        print(f"contrib/test: failed so far: {', '.join(failed)}", flush=True)
    command = [
        *(BIN / "pytest", f"--basetemp={scratch}/pytest", "--durations=10"),
        *("-o", f"faulthandler_timeout={HANG_SECONDS}"),
        *("-o", "faulthandler_exit_on_timeout=true"),
        *("--cov", "--cov-branch", "--cov-report=term:skip-covered", *arguments),
    ]
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        "COVERAGE_FILE": f"{scratch}/coverage",
    }
    return subprocess.run(command, cwd=TOP, env=environment, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
