"""One host at a time, on a directory that several share: a lease that outlives its holder's death.

A lease on a content is a file ``STEM.N``, N counting its holders, made with O_EXCL, which is
atomic on NFS too (open(2)). Its holder writes another count into it again and again. Who
waits watches that: a file that has not changed for ``expiry_seconds`` by the watcher's own
clock has a dead holder, and who then makes ``STEM.N+1`` first is the next one. No clock of
two hosts is ever compared. A holder that was merely asleep finds the file of the next one
when it looks, which it does before it publishes, and has lost.

Blocks; every method may run in any thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddfs.model.sharing import is_host_id

log = logging.getLogger(__name__)

# A host may be busy, and NFS caches attributes for up to a minute by default; that cache is
# passed by, since a file is opened anew at every look (close-to-open consistency, nfs(5)).
EXPIRY_SECONDS: Final = 60.0
BEAT_SECONDS: Final = 5.0

# A lease is some 60 bytes.
_MAX_BYTES: Final = 1024
_RELEASED: Final = "released"


@dataclass
class _Held:
    path: Path
    secret: str
    count: int = 0
    is_lost: bool = False


class Leases:
    """The leases in *directory*, which is there; *host_id* is for people. ``close`` comes last."""

    def __init__(
        self,
        directory: Path,
        host_id: str,
        *,
        expiry_seconds: float = EXPIRY_SECONDS,
        beat_seconds: float = BEAT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._host_id = host_id
        self._expiry_seconds = expiry_seconds
        self._beat_seconds = beat_seconds
        self._clock = clock
        self._held: dict[str, _Held] = {}
        # What others' leases said when they last changed, and when that was.
        self._watched: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._beating: threading.Thread | None = None

    def claim(self, stem: str) -> bool:
        """Whether the lease on *stem* is ours now; ask again after a while if not.

        Raises ``OSError``.
        """
        with self._lock:
            held = self._held.get(stem)
            if held is not None and self._is_ours(stem, held):
                return True
            number = self._newest(stem)
            if number and not self._is_free(stem, number):
                return False
            return self._take(stem, number + 1)

    def holder(self, stem: str) -> str | None:
        """The id of the host that has it, as that one has written it; None where nobody does.

        Raises ``OSError``.
        """
        number = self._newest(stem)
        said = self._read(self._directory / f"{stem}.{number}") if number else ""
        host = said.partition(" ")[0]
        return host if host != _RELEASED and is_host_id(host) else None

    def is_held(self, stem: str) -> bool:
        """Whether it is still ours, by the directory itself."""
        with self._lock:
            held = self._held.get(stem)
            return held is not None and self._is_ours(stem, held)

    def release(self, stem: str) -> None:
        """Let others have it at once; not held is fine. Never raises: it expires anyway."""
        with self._lock:
            held = self._held.pop(stem, None)
            if held is not None and not held.is_lost:
                with contextlib.suppress(OSError):
                    self._say(held.path, _RELEASED)

    def close(self) -> None:
        """Release all."""
        self._ending.set()
        if self._beating is not None:
            self._beating.join()
        for stem in list(self._held):
            self.release(stem)

    def beat(self) -> None:
        """Show that we live; called by a thread of our own."""
        with self._lock:
            for stem, held in self._held.items():
                if not held.is_lost and not self._is_ours(stem, held):
                    held.is_lost = True
                    log.warning("%s: another host has taken over", held.path)
                if not held.is_lost:
                    held.count += 1
                    with contextlib.suppress(OSError):
                        self._write(held)

    def _take(self, stem: str, number: int) -> bool:
        path = self._directory / f"{stem}.{number}"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return False
        held = _Held(path, secrets.token_hex(16))
        try:
            self._write(held)
        except OSError:
            # Nobody's: others would wait for the end of it.
            path.unlink(missing_ok=True)
            raise
        self._held[stem] = held
        self._watched.pop(stem, None)
        for older in self._numbers(stem):
            if older < number:
                with contextlib.suppress(OSError):
                    (self._directory / f"{stem}.{older}").unlink()
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat_on, daemon=True)
            self._beating.start()
        return True

    def _beat_on(self) -> None:
        while not self._ending.wait(self._beat_seconds):
            self.beat()

    def _write(self, held: _Held) -> None:
        self._say(held.path, f"{self._host_id} {held.secret} {held.count}")

    @staticmethod
    def _say(path: Path, text: str) -> None:
        """Over what is there: a disk that is full meanwhile takes nobody's lease away."""
        data = text.encode("ascii")
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)

    def _is_ours(self, stem: str, held: _Held) -> bool:
        if held.is_lost or self._newest(stem) != int(held.path.suffix[1:]):
            return False
        return held.secret in self._read(held.path)

    def _is_free(self, stem: str, number: int) -> bool:
        """Whether its holder has let go of it, or not moved for too long."""
        said = f"{number} {self._read(self._directory / f'{stem}.{number}')}"
        if said == f"{number} {_RELEASED}":
            return True
        before, since = self._watched.get(stem, ("", 0.0))
        if said != before:
            self._watched[stem] = said, self._clock()
            return False
        return self._clock() - since >= self._expiry_seconds

    def _read(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                return file.read(_MAX_BYTES).decode("ascii", "replace")
        except FileNotFoundError:
            return ""

    def _newest(self, stem: str) -> int:
        return max(self._numbers(stem), default=0)

    def _numbers(self, stem: str) -> list[int]:
        pattern = re.compile(re.escape(stem) + r"\.([1-9][0-9]{0,17})")
        matches = (pattern.fullmatch(name) for name in os.listdir(self._directory))
        return [int(match[1]) for match in matches if match]
