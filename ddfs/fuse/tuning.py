"""What only the running mount lets itself be told: limits that FUSE_INIT did not carry.

The kernel counts read-ahead and O_DIRECT as "background" and lets 12 such requests out for
the whole mount: 14 readers of a template whose mirrors stall kept everybody else waiting
(8 s for one read). pyfuse3 cannot say more at FUSE_INIT, so the control files have to. All
of this is best effort, without it ddfs is slower and not wrong.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from ddfs.fuse import mounts
from ddfs.fuse.mounts import Mount

log = logging.getLogger(__name__)

# 200 blocked readers with a read-ahead window each, and guests that keep 64 requests in the
# air, twenty times over. The kernel takes 65,535 at most.
MAX_BACKGROUND: Final = 4096

# From here on the kernel reads less ahead; both have to be raised together.
CONGESTION_THRESHOLD: Final = MAX_BACKGROUND * 3 // 4

# pyfuse3 runs one task per request under way. More than MAX_BACKGROUND, so that lookups and
# opens always find one.
MAX_TASKS: Final = 2 * MAX_BACKGROUND

# Tasks that stay when nothing is to be done; a burst then starts none.
MIN_TASKS: Final = 8

# The kernel's 128 KiB would make 8 requests of every MiB: 0.9 to 1.8 GB/s against 0.3 to 0.7.
READ_AHEAD_KIB: Final = 1024


def raise_limits(mount: Mount) -> list[str]:
    """Set all three limits of a mount that has answered FUSE_INIT; returns what failed.

    Blocks for some file operations in sysfs.
    """
    connection = mounts.CONTROL / str(mount.connection_id)
    problems = []
    if not connection.exists():
        try:
            mounts.mount_control()
        except OSError as error:
            problems.append(f"fusectl cannot be mounted on {mounts.CONTROL}: {error.strerror}")
    for path, value in (
        (connection / "max_background", MAX_BACKGROUND),
        (connection / "congestion_threshold", CONGESTION_THRESHOLD),
        (Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb"), READ_AHEAD_KIB),
    ):
        try:
            path.write_text(f"{value}\n")
        except OSError as error:
            problems.append(f"{path} stays as it is: {error.strerror}")
    for problem in problems:
        log.warning("the template pool works, but slower: %s", problem)
    return problems
