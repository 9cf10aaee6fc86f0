"""Files of this host that say what a source is, or are one."""

from __future__ import annotations

import os
import stat

from ddfs import errors


def read_start(path: str, length: int, *, hint: str = "") -> bytes:
    """The first *length* bytes of the regular file at *path*, fewer where it ends; blocks.

    Raises :class:`errors.RequestError`, with *hint*, for anything else.
    """
    try:
        # O_NONBLOCK: a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise errors.RequestError(f"{path}: not a regular file")
            return file.read(length)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise errors.RequestError(f"{path}: cannot be read: {reason}{hint}") from error
