"""Small documents that hosts leave for each other in a directory that they share.

Each is replaced whole, over a file that bears its writer's id, so that no two hosts write to the
same one. Blocks; may run in any thread, and raises ``OSError``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ddfs.primary import kernel

_FRESH: Final = ".new"


def sweep(directory: Path, host_id: str) -> None:
    """Delete what *host_id*, which is ours, was writing when it was killed. Before it writes."""
    for path in directory.glob(f"*.{host_id}{_FRESH}"):
        path.unlink(missing_ok=True)


def write(directory: Path, name: str, host_id: str, document: Mapping[str, Any]) -> None:
    """In place of the one before; durable when it returns. After a failure that one stands."""
    fresh = directory / f"{name}.{host_id}{_FRESH}"
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(fd)
        os.replace(fresh, directory / name)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    kernel.sync_directory(directory)
