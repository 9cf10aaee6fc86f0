from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ddfs.fuse import tuning
from ddfs.fuse.mounts import Mount


def test_limits_that_cannot_be_set_are_told_and_not_fatal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nobody = Mount("0:1048575", "/nowhere", "fuse.ddfs", "ddfs")
    problems = tuning.raise_limits(nobody)
    for name in ("max_background", "congestion_threshold", "read_ahead_kb"):
        assert any(name in problem and "stays as it is" in problem for problem in problems)
    assert len(caplog.records) == len(problems)
    assert "slower" in caplog.text


def test_names_find_a_task_when_all_background_requests_wait() -> None:
    assert tuning.MAX_TASKS > tuning.MAX_BACKGROUND > tuning.CONGESTION_THRESHOLD > 200


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_the_control_files_are_mounted_where_they_are_not() -> None:
    """In a mount namespace of its own, so that this machine's stay."""
    program = (
        "import subprocess\n"
        "from ddfs.fuse import mounts\n"
        "while subprocess.run(['mountpoint', '-q', str(mounts.CONTROL)]).returncode == 0:\n"
        "    mounts.unmount(mounts.CONTROL, lazily=True)\n"
        "mounts.mount_control()\n"
        "mounts.mount_control()\n"
        "print(mounts.top(mounts.CONTROL).fs_type)\n"
    )
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout == "fusectl\n", done.stderr
