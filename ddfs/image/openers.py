"""Who has a file open."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def processes_with_open(paths: Collection[str]) -> set[str]:
    """Processes that have one of *paths* open, by their descriptors' names in /proc."""
    found = set()
    me = os.getpid()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == me:
            continue
        try:
            for descriptor in os.scandir(f"{entry.path}/fd"):
                if os.readlink(descriptor.path) in paths:
                    command = Path(entry.path, "comm").read_text().strip()
                    found.add(f"process {entry.name} ({command})")
        except OSError:
            continue
    return found
