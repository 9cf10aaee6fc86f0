"""What would have to be taken back of a deployment, on disk before it is made.

A note is durable before the first trace is there, and gone for good before the domain counts
as deployed: whatever a daemon that dies leaves, the next one takes back, and never more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ddfs import errors
from ddfs.image.disk import is_marked_otherwise

# Of a note; ours have some 500.
_MAX_NOTE_BYTES: Final = 64 * 1024

_SHOWN_NAME_BYTES: Final = 100

# How far an image is. Only one that is ours is deleted: before and behind that another host may
# have made one of that name.
ANNOUNCED: Final = "announced"
OURS: Final = "ours"
LEAVING: Final = "leaving"


@dataclass
class Traces:
    """Of the domain *name* with that *uuid*: ``files`` of *pool*, there or about to be made and
    marked with the UUID, and images, with how far they are.
    """

    name: str
    uuid: str
    pool: str
    files: list[str] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)

    def delete_files(self) -> list[str]:
        """Those that are there, the last one first; can be called again. Blocks; raises
        :class:`errors.StorageError`. Returns those that are somebody else's by now.
        """
        left = []
        for name in reversed(self.files):
            with _storage_errors(Path(name)):
                if is_marked_otherwise(Path(name), self.uuid):
                    left.append(name)
                else:
                    Path(name).unlink(missing_ok=True)
        return left


class Notes:
    """The notes in *directory*. Everything blocks and raises :class:`errors.StorageError`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, traces: Traces) -> None:
        """Durable when it returns."""
        path = self._path(traces)
        with _storage_errors(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            with open(fresh, "w", encoding="utf-8") as file:
                json.dump(vars(traces), file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            self._sync()

    def remove(self, traces: Traces) -> None:
        """Gone for good when it returns, also after a power cut: a note that came back would
        cost a domain that is in use by then.
        """
        with _storage_errors(self._path(traces)):
            self._path(traces).unlink(missing_ok=True)
            if self._directory.exists():
                self._sync()

    def read(self) -> tuple[list[Traces], list[str]]:
        """All there are, and a line for each that cannot be read."""
        found, broken = [], []
        with _storage_errors(self._directory):
            paths = sorted(self._directory.glob("*.json"))
        for path in paths:
            try:
                with open(path, encoding="utf-8") as file:
                    traces = Traces(**json.loads(file.read(_MAX_NOTE_BYTES)))
                path.rename(self._path(traces))
                found.append(traces)
            except (OSError, ValueError, TypeError, RecursionError) as error:
                broken.append(f"{path}: what is to be taken back cannot be read: {error}")
        return found, broken

    def _path(self, traces: Traces) -> Path:
        # What it is of is for people, and may be as long as any file's name.
        name = traces.name.encode()[:_SHOWN_NAME_BYTES].decode(errors="ignore")
        return self._directory / f"{name}-{traces.uuid}.json"

    def _sync(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.StorageError(f"{path}: {error.strerror}") from error
