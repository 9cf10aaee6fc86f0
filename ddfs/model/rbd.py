"""Where the images of an rbd pool are, and how one is let in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from ddfs import errors

# Each becomes a line of a Ceph configuration: nothing in it may begin another, or a comment.
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")
_OPTION: Final = re.compile(r"[a-z][a-z0-9_]{0,99}")
_VALUE: Final = re.compile(r"[^\x00-\x1f\x7f;#\\\"']{0,1000}")

# Ceph's own names are short; these end up as options of qemu-img.
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f/@]{1,255}")


@dataclass(frozen=True, slots=True)
class RbdPool:
    """A pool of Ceph: *name*, its monitors as ``host`` or ``host:port``, and who we are there.

    Without a *user* nobody is asked who he is (``auth_client_required = none``). *key* is that
    of the user, as bytes. *options* are more settings of a Ceph client, by name. *secret* is
    what libvirt calls the key: ``uuid`` or ``usage``, and its value.
    """

    name: str
    monitors: tuple[str, ...]
    user: str | None = None
    key: bytes = field(default=b"", repr=False)
    options: tuple[tuple[str, str], ...] = ()
    secret: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("pool", self.name, _NAME),
            ("user", self.user if self.user is not None else "-", _NAME),
            *(("monitor", monitor, _HOST) for monitor in self.monitors or ("",)),
            *(("option", name, _OPTION) for name, _ in self.options),
            *(("value of an option", value, _VALUE) for _, value in self.options),
        ):
            if allowed.fullmatch(value) is None:
                raise errors.InvalidValueError(
                    f"an rbd pool with {value[:80]!r} as its {what} cannot be used"
                )
        if (self.user is None) != (not self.key):
            raise ValueError("a user has a key, and a key a user")
