"""What crosses the control socket about versions, declarations and stored files.

As in :mod:`ddfs.control.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ddfs.control.messages import AddTemplate, TemplateStatus

_STRICT: Final = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """How a check of a source ended; the fields are those of :class:`TemplateStatus`."""

    name: str
    verdict: str
    message: str
    checked_at: float


@dataclass(frozen=True, slots=True)
class UpdateTemplate:
    """The body of ``POST /v1/templates/{name}/update``.

    What is not None is declared differently from now on; a new content may need a new
    checksum, to be unpacked to another size, or be signed by another key.
    """

    __pydantic_config__ = _STRICT

    source: str | None = None
    checksum: str | None = None
    size: int | None = None
    # Either takes the place of the other.
    keyring: str | None = None
    no_keyring: bool | None = None


@dataclass(frozen=True, slots=True)
class Updated:
    """What a name is now, and whether that version was made for this request."""

    template: TemplateStatus
    is_new: bool


@dataclass(frozen=True, slots=True)
class Removed:
    """The versions that a removal took away, and why others stay, a line each."""

    names: tuple[str, ...]
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verify:
    """The body of ``POST /v1/templates/{name}/verify``: only look, or put right as well?"""

    __pydantic_config__ = _STRICT

    repair: bool = False


@dataclass(frozen=True, slots=True)
class DamagedBytes:
    """Bytes ``start`` to ``end`` - 1 of a published file."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Verification:
    """How far a verification is. ``stage`` is ``verifying`` or ``repairing`` while it runs, then
    ``sound``, ``damaged``, ``repaired``, ``error`` (with ``error`` and its kind) or
    ``cancelled``.

    ``damaged`` is what was found damaged at its beginning; all bytes, with ``can_tell``
    false, where nothing tells which they are.
    """

    name: str
    path: str | None
    stage: str
    size: int
    bytes_done: int
    damaged: tuple[DamagedBytes, ...] = ()
    can_tell: bool = True
    error: str | None = None
    error_kind: str | None = None


@dataclass(frozen=True, slots=True)
class Declared:
    """What is declared about all names, as it would be registered anew, secrets included."""

    templates: tuple[AddTemplate, ...]
