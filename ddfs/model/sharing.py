"""What hosts on one primary storage say to each other before one of them deletes there."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ddfs import errors

# As they stand in the names of files.
_HOST: Final = re.compile(r"[0-9a-zA-Z]{1,64}")
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")

_MAX_TEXT: Final = 1024


@dataclass(frozen=True, slots=True)
class Intent:
    """*host* wants to delete the file of a content, which it calls *file_name* in the shared
    directory, if nobody has used it for *unused_seconds*.

    Until *is_committed* anybody may cancel it; from then on the file may be gone at any moment.
    """

    token: str
    host: str
    content_id: str
    file_name: str
    unused_seconds: float
    is_committed: bool = False

    def __post_init__(self) -> None:
        is_name = self.file_name not in ("", ".", "..") and not {"/", "\0"} & set(self.file_name)
        is_number = math.isfinite(self.unused_seconds) and self.unused_seconds >= 0
        is_short = max(len(self.file_name), len(self.content_id)) <= _MAX_TEXT
        if not (
            _TOKEN.fullmatch(self.token) and is_host_id(self.host) and is_name and is_number
        ) or not (is_short and self.content_id):
            raise errors.InvalidValueError(f"not an intent: {self!r:.300}")


@dataclass(frozen=True, slots=True)
class UsesRecord:
    """What a host has written down of itself. ``name`` is for people.

    ``votes`` are its answers to intents, by their tokens: why the file must stay, or None if it
    may go. ``of_content`` and ``of_file`` are who used what when it last looked, and
    ``obstacles`` what it could not look at then.
    """

    host: str
    name: str
    votes: Mapping[str, str | None] = field(default_factory=dict)
    of_content: Mapping[str, Sequence[str]] = field(default_factory=dict)
    of_file: Mapping[str, Sequence[str]] = field(default_factory=dict)
    obstacles: Sequence[str] = ()

    def users(self, content_id: str, file_name: str) -> Sequence[str]:
        """Who used a file there."""
        found = [*self.of_file.get(file_name, ()), *self.of_content.get(content_id, ())]
        return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A record as it stands in the directory: *record* is None where it makes no sense.

    *stamp* changes whenever its host shows that it lives, and is compared with itself only.
    """

    host: str
    record: UsesRecord | None
    stamp: int

    @property
    def name(self) -> str:
        """What people call the host."""
        return self.record.name if self.record is not None else self.host


def is_host_id(text: str) -> bool:
    """Whether *text* may stand in the name of a file of that host."""
    return _HOST.fullmatch(text) is not None
