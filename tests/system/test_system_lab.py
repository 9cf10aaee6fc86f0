"""The lab itself: what it starts ends with it, whatever happens to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import bootimage, namespace, processes, scratch

NAMESPACE = Path(namespace.__file__)


def run_inside(script: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", NAMESPACE, "sh", "-c", script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def is_there(marker: str) -> bool:
    """Whether any process has *marker* among its arguments."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in entry.read_bytes().split(b"\0"):
                return True
        except OSError:
            continue  # it ended meanwhile
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_everything_inside_ends_with_it(number: int) -> None:
    marker = f"{os.getpid()}{time.monotonic_ns() % 10**9:09}"
    script = f"setsid sh -c 'trap : TERM HUP; sleep {marker}; sleep {marker}' & echo up; wait"
    with run_inside(script) as process:
        assert first_line(process) == "up"
        processes.wait_until(lambda: is_there(marker), "it runs")
        process.send_signal(number)
        processes.wait_until(lambda: not is_there(marker), "it is gone")


def test_mounts_inside_are_not_seen_outside(tmp_path: Path) -> None:
    script = f"mount -n -t tmpfs none {tmp_path}; touch {tmp_path}/x; echo up; sleep 60"
    with run_inside(script) as process:
        assert first_line(process) == "up"
        assert list(tmp_path.iterdir()) == []
        process.terminate()


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("true", 0)])
def test_the_exit_code_is_the_commands(script: str, code: int) -> None:
    with run_inside(script) as process:
        assert process.wait(60) == code


def test_scratch_of_a_killed_run_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    left = tmp_path / f"{scratch.PREFIX}left"
    left.mkdir()
    (left / scratch.LOCK).touch()
    (left / "published").write_bytes(b"x")
    subprocess.run(["chattr", "+i", left / "published"], check=False, capture_output=True)
    foreign = tmp_path / f"{scratch.PREFIX}not-ours"
    foreign.mkdir()
    with scratch.scratch_directory() as first, scratch.scratch_directory() as second:
        assert first.is_dir()
        assert second.is_dir()
        assert not left.exists()
        assert foreign.is_dir(), "it has no lock, so it is somebody else's"
    assert not first.exists()


def test_the_boot_sector_ends_as_a_bios_wants_it() -> None:
    sector = bootimage.boot_sector("hello")
    assert len(sector) == bootimage.SECTOR
    assert sector[-2:] == b"\x55\xaa"
    assert b"hello\r\n\0" in sector
    with pytest.raises(ValueError, match="too long"):
        bootimage.boot_sector("x" * 446)
