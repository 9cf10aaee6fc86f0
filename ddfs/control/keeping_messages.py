"""What crosses the control socket about room: pins, and what may be deleted.

As :mod:`ddfs.control.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_STRICT: Final = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Collect:
    """The body of ``POST /v1/gc``.

    ``unused_for`` is in seconds: what was used since then stays. None is the daemon's own
    short while, in which a domain or overlay may be in the making.
    """

    __pydantic_config__ = _STRICT

    dry_run: bool = False
    unused_for: float | None = None


@dataclass(frozen=True, slots=True)
class StoredStatus:
    """A published file. ``names`` are its templates, none if they were removed;
    ``last_used_at`` is None for never. ``kept_because`` is None for a file that is (or, in a
    dry run, would be) deleted.
    """

    content_id: str
    primary: str
    path: str
    size: int
    names: tuple[str, ...]
    last_used_at: float | None
    kept_because: str | None


@dataclass(frozen=True, slots=True)
class CollectionStatus:
    """``removed`` are gone, or would be in a dry run; both lists have the longest unused first.

    ``freed`` is the sum of their sizes in bytes.
    """

    dry_run: bool
    freed: int
    removed: tuple[StoredStatus, ...]
    kept: tuple[StoredStatus, ...]


@dataclass(frozen=True, slots=True)
class ForgetHost:
    """The body of ``POST /v1/hosts/forget``: a host, by its id or its name, that is gone for good
    and of whose uses of shared primary storage nobody has to think any more.
    """

    __pydantic_config__ = _STRICT

    host: str


@dataclass(frozen=True, slots=True)
class Place:
    """The body of ``PUT /v1/places``: these templates shall be on that primary storage.

    What is published elsewhere is copied, what is not here is fetched to it. With ``wait``
    the answer comes when all are there, and is an error if one will not be.
    """

    __pydantic_config__ = _STRICT

    names: tuple[str, ...]
    primary: str
    wait: bool = True


@dataclass(frozen=True, slots=True)
class TakeStock:
    """The body of ``POST /v1/stock``: compare disk and catalogue, and mend with ``fix``."""

    __pydantic_config__ = _STRICT

    fix: bool = False


@dataclass(frozen=True, slots=True)
class DifferenceStatus:
    """A difference; ``remedy`` is what to do, or what was done if it is ``mended``."""

    subject: str
    problem: str
    remedy: str
    mended: bool


@dataclass(frozen=True, slots=True)
class Pin:
    """The body of ``PUT /v1/pins``: names of templates, and whether they shall be pinned."""

    __pydantic_config__ = _STRICT

    names: tuple[str, ...]
    pinned: bool = True
