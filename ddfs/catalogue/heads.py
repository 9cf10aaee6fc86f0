"""The first bytes of every template's image, as files.

Not in the database: they are read for every file of a pool refresh, and a listing of 10,000
templates holds 640 MB of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ddfs import errors

DIRECTORY: Final = "heads"
_SUFFIX: Final = ".head"
_FRESH_PREFIX: Final = ".fresh-"

# As model.Manifest.content_id makes them. They become file names, so nothing else may pass.
_CONTENT_ID: Final = re.compile(r"([a-z0-9-]{1,20}):([0-9a-f]{1,128}(?:-[0-9a-f]{16})?)")


class HeadStore:
    """The heads in *state_dir*, whose directory ``heads`` is made where it is missing.

    Every method may run in any thread at any time; ``read`` and ``size`` are short enough
    for an event loop. All raise :class:`errors.CatalogueError` when the disk fails.
    """

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir / DIRECTORY
        self._prefix = f"{self.directory}/"
        with self._translated("cannot be made"):
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            # What a crash in the middle of put() leaves.
            for stale in self.directory.glob(_FRESH_PREFIX + "*"):
                stale.unlink(missing_ok=True)

    def path(self, content_id: str) -> Path:
        """Where the head of *content_id* lies, whether it is there or not."""
        return Path(self._place(content_id))

    def _place(self, content_id: str) -> str:
        # A string: a listing of 10,000 comes here for each, and Path costs more than open(2).
        match = _CONTENT_ID.fullmatch(content_id)
        if match is None:
            raise ValueError(f"not a content id: {content_id[:140]!r}")
        return f"{self._prefix}{match[1]}-{match[2]}{_SUFFIX}"

    def put(self, content_id: str, data: bytes) -> None:
        """Store *data* as the head, in place of an older one; durable when it returns.

        A reader sees the old or the new one, and a failure leaves the old one.
        """
        target = self.path(content_id)
        with self._translated("cannot store the head of an image"):
            fd, fresh = tempfile.mkstemp(prefix=_FRESH_PREFIX, dir=self.directory)
            try:
                with open(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(fd)
                os.replace(fresh, target)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(fresh)
                raise
            self._sync()

    def read(self, content_id: str, offset: int, length: int) -> bytes:
        """At most *length* bytes from *offset*; fewer at the end, none without a head."""
        try:
            fd = os.open(self._place(content_id), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(fd, length, offset)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise self._translation(error, "cannot read the head of an image") from error

    def size(self, content_id: str) -> int:
        """How many bytes the head has; 0 without one."""
        with self._translated("cannot look at the head of an image"):
            try:
                return os.stat(self._place(content_id)).st_size
            except FileNotFoundError:
                return 0

    def remove(self, content_id: str) -> None:
        """Delete the head; none is fine."""
        with self._translated("cannot delete the head of an image"):
            self.path(content_id).unlink(missing_ok=True)
            self._sync()

    def _sync(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translation(error, doing) from error

    def _translation(self, error: OSError, doing: str) -> errors.CatalogueError:
        return errors.CatalogueError(
            f"{self.directory}: {doing}: {error.strerror or error}; mend or free that disk, "
            "then try again"
        )
