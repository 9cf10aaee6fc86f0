"""A small process that takes the mount away when the daemon dies without doing so.

After ``kill -9`` a mount answers ENOTCONN to everybody, and the real symlinks in the
directory under it, through which published templates stay usable, are out of sight until
somebody unmounts it. The guard learns of the death from a pipe whose other end only the
daemon has.
"""

from __future__ import annotations

import subprocess
from typing import Final

from ddfs.fuse import mounts
from ddfs.fuse.mounts import Mount

# How long the guard may take to end after an orderly good-bye.
_END_SECONDS: Final = 2.0

# $1 is the mountpoint, $2 its device, $3 the mountpoint as mountinfo writes it. `read`
# succeeds when the daemon says good-bye, and fails when the pipe closes without it.
# SIGTERM is ignored, because systemd sends it to all of a unit whose main process was
# killed, and that is just when the guard is needed.
_SCRIPT: Final = """
trap '' HUP INT TERM
echo ready; exec >/dev/null
read -r _ && exit 0
while read -r _ _ device _ point _; do
    [ "$device" = "$2" ] && [ "$point" = "$3" ] && exec umount -l -- "$1"
done < /proc/self/mountinfo
"""


class Guard:
    """Watches this process for the life of one mount; on guard once it is made.

    Made and dismissed in a thread: both wait some milliseconds for the other process.
    ``lock_fd`` is a locked descriptor that the guard keeps open as long as it runs: a new
    daemon that waits for the lock before it mounts cannot have its mount taken away, though
    the kernel likes to give it the same device number.
    """

    def __init__(self, mount: Mount, lock_fd: int) -> None:
        self._process = subprocess.Popen(
            [
                "sh", "-c", _SCRIPT, "ddfs-guard",
                mount.mountpoint, mount.device, mounts.escape(mount.mountpoint),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=(lock_fd,),
            # Ctrl-C and `kill -- -PGID` are meant for the daemon alone.
            start_new_session=True,
        )  # fmt: skip

        # Not before it ignores the signals that are meant for the daemon.
        assert self._process.stdout is not None
        with self._process.stdout as greeting:
            greeting.readline()

    @property
    def pid(self) -> int:
        """For tests, and for whoever looks at a process list."""
        return self._process.pid

    def dismiss(self) -> None:
        """Say good-bye and wait for the guard's end: the mount is gone, or somebody else's.

        Never raises. Blocks for some milliseconds.
        """
        try:
            self._process.communicate(b"bye\n", timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
