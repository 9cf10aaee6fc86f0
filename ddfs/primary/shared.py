"""A directory that several hosts share (NFS, a cluster file system) as primary storage.

Partial files are each host's own; what is published is everybody's. A content is fetched by
one host at a time (:mod:`ddfs.primary.lease`), and the others then find it. What is published is
deleted only when all hosts have agreed (:mod:`ddfs.primary.uses`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from ddfs import errors
from ddfs.model import Digest, PublishedFile
from ddfs.model.sharing import HostRecord, Intent, UsesRecord, is_host_id
from ddfs.primary import kernel, lease, mend
from ddfs.primary.directory import DirectoryStorage
from ddfs.primary.sayings import Sayings
from ddfs.primary.stems import stem_of
from ddfs.primary.uses import UsesDirectory

_HOST: Final = "host-"
_LEASES: Final = "leases"
_USES: Final = "uses"
_SAYINGS: Final = "contents"

# As model.Template.published_name ends.
_PUBLISHED: Final = re.compile(r"@[0-9a-f]{12}\.[a-z0-9]+$")


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
        self.host_id = host_id
        self._expiry_seconds = expiry_seconds
        self._beat_seconds = beat_seconds
        self._leases: lease.Leases | None = None
        self._uses: UsesDirectory | None = None
        self._sayings: Sayings | None = None
        # The names of files that everybody has agreed to delete.
        self._agreed: set[str] = set()

    def prepare(self) -> None:
        """As the base, and ends what a killed daemon of this host had begun to write."""
        super().prepare()
        assert self._sayings is not None
        with self._translated("cannot be written to"):
            self.uses.sweep()
            self._sayings.sweep()

    def close(self) -> None:
        """Let go of everything; partial files stay."""
        if self._leases is not None:
            self._leases.close()
        super().close()

    def claim(self, content_id: str) -> bool:
        """Whether this host may fetch *content_id*, or use what another one publishes; ask again
        after a while if not. Who is about to delete it is stopped, or waited for.
        """
        assert self._leases is not None
        with self._translated("cannot claim a download"):
            if self.cancel([i for i in self.intents() if i.content_id == content_id]):
                return False
            return self._leases.claim(stem_of(content_id))

    def holder(self, content_id: str) -> str | None:
        """Who fetches *content_id* or deletes it, as people call that host."""
        assert self._leases is not None
        with self._translated("cannot see who else downloads"):
            host = self._leases.holder(stem_of(content_id))
            if host is None:
                host = next((i.host for i in self.intents() if i.content_id == content_id), None)
        return next((each.name for each in self.records() if each.host == host), host)

    def disclaim(self, content_id: str) -> None:
        """Let another host fetch it; it may also find it published."""
        if self._leases is not None:
            self._leases.release(stem_of(content_id))

    def say(self, content_id: str, size: int, digest: Digest) -> None:
        """To all hosts, and for ever."""
        assert self._sayings is not None
        with self._translated("cannot say what a download came to"):
            self._sayings.say(stem_of(content_id), size, digest)

    def said_of(self, content_id: str) -> tuple[int, Digest] | None:
        """By whichever host has published it last."""
        assert self._sayings is not None
        with self._translated("cannot see what a download came to"):
            return self._sayings.said_of(stem_of(content_id))

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

    def _is_mended(self, published: PublishedFile) -> bool:
        """By any host; by one that died in it, until it is back."""
        with self._translated("cannot see what other hosts mend"):
            hosts = self.partial_dir.parent.glob(_HOST + "*")
            return any(mend.mark_of(Path(published.path), host).exists() for host in hosts)

    def purge(self, published: PublishedFile) -> None:
        """Refused but between :meth:`commit` and :meth:`finish`, unless it is gone already."""
        if Path(published.path).name not in self._agreed and os.path.lexists(published.path):
            raise errors.StorageError(
                f"{published.path}: other hosts share this storage and have not agreed to delete it"
            )
        super().purge(published)

    # What hosts say to each other: see UsesDirectory. All raise errors.StorageError.

    @property
    def uses(self) -> UsesDirectory:
        """Where they say it."""
        if self._uses is None:
            raise RuntimeError("prepare() comes first")
        return self._uses

    def register(self) -> None:
        """Make this host known to the others."""
        with self._translated("cannot say that this host uses it"):
            self.uses.register()

    def write_record(self, record: UsesRecord) -> None:
        """What this host uses, and its votes."""
        with self._translated("cannot say what this host uses"):
            self.uses.write_record(record)

    def show_life(self) -> bool:
        """Whether the others still know this host, which lives."""
        with self._translated("cannot say that this host lives"):
            try:
                self.uses.show_life()
            except FileNotFoundError:
                return False
        return True

    def records(self) -> list[HostRecord]:
        """Of all hosts, those too that have partial files here and, with a ddfs from before there
        were records, have never said what they use.
        """
        with self._translated("cannot see what other hosts use"):
            known = self.uses.records()
            said = {each.host for each in known}
            names = [e.name for e in os.scandir(self.partial_dir.parent) if e.is_dir()]
        hosts = (n.removeprefix(_HOST) for n in names if n.startswith(_HOST))
        return known + [HostRecord(h, None, 0) for h in hosts if is_host_id(h) and h not in said]

    def forget(self, host: str) -> None:
        """A host that is gone for good, and its partial files."""
        with self._translated(f"cannot forget host {host}"):
            self.uses.forget(host)
            if is_host_id(host) and host != self.host_id:
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(self.partial_dir.parent / (_HOST + host))

    def propose(self, content_id: str, file_name: str, unused_seconds: float) -> Intent:
        """A new intent."""
        with self._translated("cannot ask the other hosts"):
            return self.uses.propose(content_id, file_name, unused_seconds)

    def intents(self) -> list[Intent]:
        """All that are there."""
        with self._translated("cannot see what other hosts delete"):
            return self.uses.intents()

    def commit(self, intent: Intent) -> bool:
        """Whether the file may be deleted from now on until :meth:`finish`."""
        with self._translated("cannot agree with the other hosts"):
            is_agreed = self.uses.commit(intent)
        if is_agreed:
            self._agreed.add(intent.file_name)
        return is_agreed

    def cancel(self, intents: Iterable[Intent]) -> list[Intent]:
        """Those that are committed already, and not over."""
        with self._translated("cannot stop another host's deletion"):
            return self.uses.cancel(intents)

    def finish(self, intent: Intent) -> None:
        """It is over."""
        self._agreed.discard(intent.file_name)
        with self._translated("cannot say that a deletion is over"):
            self.uses.finish(intent)

    def is_over(self, token: str) -> bool:
        """Whether it was cancelled or finished."""
        with self._translated("cannot see what other hosts delete"):
            return self.uses.is_over(token)

    def _published_bytes(self) -> int:
        """Of all hosts: what others have published counts against the quota here too."""
        found = 0
        with self._translated("cannot be read"), os.scandir(self.path) as entries:
            for entry in entries:
                if _PUBLISHED.search(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        found += entry.stat(follow_symlinks=False).st_blocks * 512
        return found

    def names(self) -> list[str]:
        """The names of all files in the directory, whoever published them."""
        with self._translated("cannot be read"):
            return [e.name for e in os.scandir(self.path) if e.is_file(follow_symlinks=False)]

    def _find_partial_dir(self) -> Path:
        shared = super()._find_partial_dir()
        mine, leases, uses = shared / (_HOST + self.host_id), shared / _LEASES, shared / _USES
        sayings = shared / _SAYINGS
        with self._translated("cannot be written to"):
            for directory in (mine, leases, uses, sayings):
                directory.mkdir(mode=0o700, exist_ok=True)
                kernel.own(directory)
        self._leases = lease.Leases(
            leases,
            self.host_id,
            expiry_seconds=self._expiry_seconds,
            beat_seconds=self._beat_seconds,
        )
        self._uses = UsesDirectory(uses, self.host_id)
        self._sayings = Sayings(sayings, self.host_id)
        return mine
