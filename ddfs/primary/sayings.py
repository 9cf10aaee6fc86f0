"""What contents came to that have no hash before they are fetched: said by the host that has
published one, to those that share its primary storage and would else have to fetch it again.

One small file for each content, which stays when the published one goes: what comes out of the
same packed file is the same. Blocks; every method may run in any thread, and raises ``OSError``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from ddfs import errors
from ddfs.model import MAX_SIZE, Digest, HashAlgorithm
from ddfs.primary import hostfiles

# A size and a hash.
_MAX_BYTES: Final = 1024


class Sayings:
    """In *directory*, which is there; *host_id* is ours."""

    def __init__(self, directory: Path, host_id: str) -> None:
        self._directory = directory
        self._host_id = host_id

    def sweep(self) -> None:
        """Delete what this host was writing when it was killed. Before it writes anything."""
        hostfiles.sweep(self._directory, self._host_id)

    def say(self, stem: str, size: int, digest: Digest) -> None:
        """In place of what was said before; durable when it returns."""
        said = {"size": size, digest.algorithm.value: digest.hexdigest}
        hostfiles.write(self._directory, stem, self._host_id, said)

    def said_of(self, stem: str) -> tuple[int, Digest] | None:
        """Size and hash; None where nobody has said anything that makes sense."""
        try:
            with (self._directory / stem).open("rb") as file:
                said = json.loads(file.read(_MAX_BYTES))
            size = said["size"]
            digest = Digest(HashAlgorithm.SHA256, said[HashAlgorithm.SHA256.value])
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        except errors.InvalidValueError:  # of a digest that is none
            return None
        return (size, digest) if type(size) is int and 0 <= size <= MAX_SIZE else None
