"""Who has a file open."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def processes_with_open(paths: Collection[str]) -> set[str]:
    """Processes that have one of *paths* open, by their descriptors' names in /proc."""
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
