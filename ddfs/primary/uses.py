"""The directory in which hosts on one primary storage say what they use of it.

``HOST.host`` says that there is such a host, until an operator forgets it, and by its time of
last write that the host lives; ``HOST.json`` is its record. ``TOKEN.intent`` is somebody's wish
to delete a file, ``TOKEN.committed`` what becomes of it when all hosts agree. The step between
the two is a rename, and to cancel is to unlink: the file system does one of them, whoever comes
first, and says so to the other. A listing may leave out what is renamed meanwhile (readdir(3)),
therefore what says that a host is there is never renamed, and the two states of an intent are
listed in their order. :mod:`ddfs.keeping.agreement` has the protocol.

Blocks; every method may run in any thread, and raises ``OSError``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ddfs import errors
from ddfs.model.sharing import HostRecord, Intent, UsesRecord, is_host_id
from ddfs.primary import hostfiles, kernel

_HOST: Final = ".host"
_RECORD: Final = ".json"
_INTENT: Final = ".intent"
_COMMITTED: Final = ".committed"

# Ten thousand templates, each with a few users that are named.
MAX_RECORD_BYTES: Final = 16 * 2**20
# One file's.
_MAX_INTENT_BYTES: Final = 16 * 1024
# More hosts than a cluster file system takes, and more files than anybody deletes at once.
_MAX_ENTRIES: Final = 100_000


class UsesDirectory:
    """In *directory*, which is there; *host_id* is ours."""

    def __init__(self, directory: Path, host_id: str) -> None:
        self._directory = directory
        self._host_id = host_id

    def sweep(self) -> None:
        """Delete what this host was writing when it was killed. Before it writes anything."""
        hostfiles.sweep(self._directory, self._host_id)

    # Records

    def register(self) -> None:
        """Make this host known; durable when it returns, again is fine. Before it looks for
        intents, since whoever does not see the host may commit one.
        """
        path = self._directory / (self._host_id + _HOST)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        kernel.sync_directory(self._directory)

    def write_record(self, record: UsesRecord) -> None:
        """In place of the one before; durable when it returns."""
        self._write(self._host_id + _RECORD, asdict(record))

    def show_life(self) -> None:
        """Let the others see that we are here, by the clock of the file system; raises
        ``FileNotFoundError`` when somebody has forgotten us.
        """
        os.utime(self._directory / (self._host_id + _HOST))

    def records(self) -> list[HostRecord]:
        """Those of all hosts that are known, ours too."""
        found = []
        for name in self._names(_HOST):
            host = name.removesuffix(_HOST)
            try:
                stamp = os.stat(self._directory / name).st_mtime_ns
                data = _read(self._directory / (host + _RECORD), MAX_RECORD_BYTES)
            except FileNotFoundError:
                stamp, data = 0, b""
            if (self._directory / name).exists():
                found.append(HostRecord(host, _record_from(data), stamp))
        return found

    def forget(self, host: str) -> None:
        """Its record and its intents; unknown is fine. It must be gone for good: what it had
        begun to delete counts as finished.
        """
        for intent in self.intents():
            if intent.host == host:
                self._remove(intent.token + _INTENT, intent.token + _COMMITTED)
        if is_host_id(host):
            self._remove(host + _HOST, host + _RECORD)

    # Intents

    def propose(self, content_id: str, file_name: str, unused_seconds: float) -> Intent:
        """A new intent of ours, durable when it returns."""
        intent = Intent(secrets.token_hex(16), self._host_id, content_id, file_name, unused_seconds)
        self._write(intent.token + _INTENT, asdict(intent))
        return intent

    def intents(self) -> list[Intent]:
        """All that are there; one that makes no sense is nobody's, and left out.

        Of one that is committed meanwhile both or neither of its names may be seen: whether
        it is over, only :meth:`is_over` says.
        """
        found = {}
        for suffix in (_INTENT, _COMMITTED):
            for name in self._names(suffix):
                with contextlib.suppress(FileNotFoundError):
                    intent = _intent_from(_read(self._directory / name, _MAX_INTENT_BYTES), suffix)
                    if intent is not None and intent.token + suffix == name:
                        found[intent.token] = intent
        return list(found.values())

    def commit(self, intent: Intent) -> bool:
        """Whether *intent*, which is ours, holds from now on; False when it was cancelled."""
        path = self._directory / (intent.token + _INTENT)
        committed = path.with_suffix(_COMMITTED)
        try:
            os.rename(path, committed)
        except FileNotFoundError:
            # Also when an answer got lost on a network and the question was asked again.
            if not committed.exists():
                return False
        kernel.sync_directory(self._directory)
        return True

    def cancel(self, intents: Iterable[Intent]) -> list[Intent]:
        """Cancel them; those that are committed already, and not over."""
        late = []
        for intent in intents:
            self._remove(intent.token + _INTENT)
            if (self._directory / (intent.token + _COMMITTED)).exists():
                late.append(intent)
        return late

    def finish(self, intent: Intent) -> None:
        """It is over: deleted, or left alone. Ours to say; again is fine."""
        self._remove(intent.token + _INTENT, intent.token + _COMMITTED)

    def is_over(self, token: str) -> bool:
        """Whether it was cancelled or finished. In this order: from the first name it may go to
        the second, and never back.
        """
        names = (token + suffix for suffix in (_INTENT, _COMMITTED))
        return not any((self._directory / name).exists() for name in names)

    def _names(self, suffix: str) -> list[str]:
        with os.scandir(self._directory) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(suffix)]
        if len(names) > _MAX_ENTRIES:
            raise OSError(errno.EFBIG, f"{len(names)} files that end in {suffix}")
        return sorted(names)

    def _remove(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._directory / name)

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        hostfiles.write(self._directory, name, self._host_id, document)


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(most + 1)
    return b"" if len(data) > most else data


def _record_from(data: bytes) -> UsesRecord | None:
    try:
        document = json.loads(data)
        return UsesRecord(
            _text(document["host"]),
            _text(document["name"]),
            {str(k): None if v is None else _text(v) for k, v in document["votes"].items()},
            {str(k): _texts(v) for k, v in document["of_content"].items()},
            {str(k): _texts(v) for k, v in document["of_file"].items()},
            _texts(document["obstacles"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _intent_from(data: bytes, suffix: str) -> Intent | None:
    try:
        document = json.loads(data)
        return Intent(
            _text(document["token"]),
            _text(document["host"]),
            _text(document["content_id"]),
            _text(document["file_name"]),
            float(document["unused_seconds"]),
            suffix == _COMMITTED,
        )
    except (ValueError, KeyError, TypeError, RecursionError, errors.InvalidValueError):
        return None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    # It is shown to people, on one line.
    return "".join(each if each.isprintable() else "?" for each in value)


def _texts(value: object) -> Sequence[str]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return [_text(each) for each in value]
