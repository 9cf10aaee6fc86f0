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
            with os.scandir(f"/proc/{name}/fd") as descriptors:
                if any(os.readlink(descriptor.path) in paths for descriptor in descriptors):
                    command = Path("/proc", name, "comm").read_text().strip()
                    found.add(f"process {name} ({command})")
        except OSError:
            continue
    return found
