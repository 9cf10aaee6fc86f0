"""Who has a file open."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

# libvirt's refresh of a pool has each file open for some milliseconds.
PASSING_SECONDS: Final = 0.5


def processes_with_open(paths: Collection[str]) -> set[str]:
    """Processes that have one of *paths* open, by their descriptors' names in /proc.

    Who only looks into it in passing is gone when it is asked again. Blocks for that long.
    """
    if not _processes_now(paths):
        return set()
    time.sleep(PASSING_SECONDS)
    return _processes_now(paths)


def _processes_now(paths: Collection[str]) -> set[str]:
    found = set()
    me = os.getpid()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == me:
            continue
        try:
            descriptors = os.listdir(f"/proc/{name}/fd")
            if any(_file_of(f"/proc/{name}/fd/{each}") in paths for each in descriptors):
                command = Path("/proc", name, "comm").read_text().strip()
                found.add(f"process {name} ({command})")
        except OSError:
            continue
    return found


def _file_of(descriptor: str) -> str:
    try:
        return os.readlink(descriptor)
    except OSError:  # closed meanwhile, which says nothing of the others
        return ""
