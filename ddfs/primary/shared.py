"""A directory that several hosts share (NFS, a cluster file system) as primary storage.

Partial files are each host's own; what is published is everybody's. A content is fetched by
one host at a time (:mod:`ddfs.primary.lease`), and the others then find it. Nothing published
is ever deleted from here, since no host knows what the others' domains stand on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ddfs import errors
from ddfs.model import PublishedFile
from ddfs.primary import kernel, lease
from ddfs.primary.directory import DirectoryStorage
from ddfs.primary.stems import stem_of

_LEASES: Final = "leases"


class SharedDirectoryStorage(DirectoryStorage):
    """As its base. *host_id* tells this host from the others, for ever."""

    def __init__(
        self,
        name: str,
        path: Path,
        host_id: str,
        *,
        quota: Callable[[int], int] | None = None,
        keep_free: Callable[[int], int] | None = None,
        expiry_seconds: float = lease.EXPIRY_SECONDS,
        beat_seconds: float = lease.BEAT_SECONDS,
    ) -> None:
        super().__init__(name, path, quota=quota, keep_free=keep_free)
        self.is_shared = True
        self._host_id = host_id
        self._expiry_seconds = expiry_seconds
        self._beat_seconds = beat_seconds
        self._leases: lease.Leases | None = None

    def close(self) -> None:
        """Let go of everything; partial files stay."""
        if self._leases is not None:
            self._leases.close()
        super().close()

    def claim(self, content_id: str) -> bool:
        """Whether this host may fetch *content_id*; ask again after a while if not."""
        assert self._leases is not None
        with self._translated("cannot claim a download"):
            return self._leases.claim(stem_of(content_id))

    def disclaim(self, content_id: str) -> None:
        """Let another host fetch it; it may also find it published."""
        if self._leases is not None:
            self._leases.release(stem_of(content_id))

    def publish(self, partial: Path, name: str) -> PublishedFile:
        """As the base; not when another host has taken over meanwhile."""
        assert self._leases is not None
        with self._translated("cannot look at the lease"):
            # Its name is the content's, whatever it ends in: no name of ours has a dot.
            is_held = self._leases.is_held(partial.name.partition(".")[0])
        if not is_held:
            raise errors.StorageError(
                f"{self.path}: another host has taken over the download of {name}; what it "
                "publishes is used"
            )
        return super().publish(partial, name)

    def purge(self, published: PublishedFile) -> None:
        """Refused, unless it is gone already."""
        if os.path.lexists(published.path):
            raise errors.StorageError(
                f"{published.path}: other hosts share this storage and may need it; delete it by "
                "hand when none does (chattr -i first)"
            )
        super().purge(published)

    def _find_partial_dir(self) -> Path:
        shared = super()._find_partial_dir()
        mine, leases = shared / f"host-{self._host_id}", shared / _LEASES
        with self._translated("cannot be written to"):
            for directory in (mine, leases):
                directory.mkdir(mode=0o700, exist_ok=True)
                kernel.own(directory)
        self._leases = lease.Leases(
            leases,
            self._host_id,
            expiry_seconds=self._expiry_seconds,
            beat_seconds=self._beat_seconds,
        )
        return mine
