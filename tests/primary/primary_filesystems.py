"""Small real file systems. Published files are immutable, so none of them may lie in
tmp_path itself, which pytest could then not remove.
"""

import contextlib
import os
import subprocess

import pytest

from ddfs.model import MiB

SIZES = {"ext4": 32 * MiB, "xfs": 320 * MiB, "tmpfs": 32 * MiB}


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@contextlib.contextmanager
def mounted(kind, where):
    """A fresh file system of *kind*, mounted at where/fs until the end."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    target = where / "fs"
    target.mkdir()
    if kind == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", f"size={SIZES[kind]}", "tmpfs", str(target))
    else:
        image = where / "image"
        with open(image, "wb") as file:
            file.truncate(SIZES[kind])
        run(f"mkfs.{kind}", "-q", str(image))
        run("mount", "-o", "loop", str(image), str(target))
    try:
        yield target
    finally:
        run("umount", "-l", str(target))
