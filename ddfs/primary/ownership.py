"""Which volumes of a pool are ours: written down before they are made, and on them.

A pool knows nothing of who made a volume, a partition cannot even be given a name, and names
are used again. So each volume of ours has a label in its last bytes, which is compared before
anything is written to it again or deleted.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ddfs.model import KiB, PublishedFile
from ddfs.primary import device, kernel
from ddfs.primary.stems import content_of, stem_of

log = logging.getLogger(__name__)

_SUFFIX: Final = ".volume"

# One block of any device.
LABEL_LENGTH: Final = 4 * KiB

_MAX_RECORD: Final = 64 * KiB


@dataclass(frozen=True, slots=True)
class OwnedVolume:
    """A volume that was made or is going to be.

    ``path`` is empty until it is there, and ``capacity`` is then what it is asked to have;
    ``token`` is on its label; ``published`` is there once all its bytes were read back and are
    right.
    """

    name: str
    token: str
    path: str = ""
    capacity: int = 0
    published: PublishedFile | None = None

    def label(self) -> bytes:
        """Its last bytes."""
        return f"ddfs template {self.token}\n".encode().ljust(LABEL_LENGTH, b"\0")

    def is_labelled(self) -> bool:
        """Whether the volume at ``path`` is the one that was made; raises ``OSError``."""
        with device.opened(self.path) as fd:
            at = self.capacity - LABEL_LENGTH
            return device.size_of(fd) >= self.capacity and (
                os.pread(fd, LABEL_LENGTH, at) == self.label()
            )

    def write_label(self) -> None:
        """Durable when it returns."""
        with device.opened(self.path, os.O_RDWR) as fd:
            os.pwrite(fd, self.label(), self.capacity - LABEL_LENGTH)
            os.fsync(fd)


class Ownership:
    """The records, a file for each content in *directory*. Raises ``OSError``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, content_id: str) -> Path:
        return self._directory / (stem_of(content_id) + _SUFFIX)

    def write(self, content_id: str, volume: OwnedVolume) -> None:
        """Durable when it returns."""
        path = self._path(content_id)
        fresh = path.with_suffix(_SUFFIX + "-new")
        with open(fresh, "w", encoding="utf-8") as file:
            json.dump(asdict(volume), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        kernel.sync_directory(self._directory)

    def read(self, content_id: str) -> OwnedVolume | None:
        """None where there is none; one that is damaged counts as none."""
        path = self._path(content_id)
        try:
            with open(path, encoding="utf-8") as file:
                fields = json.loads(file.read(_MAX_RECORD))
            published = fields.pop("published")
            return OwnedVolume(**fields, published=published and PublishedFile(**published))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("%s is damaged and not used", path)
            return None

    def remove(self, content_id: str) -> None:
        """None there is fine."""
        self._path(content_id).unlink(missing_ok=True)
        kernel.sync_directory(self._directory)

    def all(self) -> Iterator[tuple[str, OwnedVolume]]:
        """Every content with its volume."""
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            content_id = content_of(path.name.removesuffix(_SUFFIX))
            volume = self.read(content_id) if content_id is not None else None
            if content_id is not None and volume is not None:
                yield content_id, volume
