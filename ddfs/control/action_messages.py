"""What crosses the control socket about domains and their disks; see :mod:`messages`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_STRICT: Final = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class ExplainGate:
    """The body of ``POST /v1/gate/explain``: a domain's name, or its XML. One of both."""

    __pydantic_config__ = _STRICT

    domain: str | None = None
    xml: str | None = None


@dataclass(frozen=True, slots=True)
class GateFileReport:
    """One file of a domain, and how it stands with it.

    ``role`` and ``target`` as in :class:`ddfs.image.domain.DomainFile`. ``state`` is the
    template's (:class:`ddfs.model.SpoolState`), for all other files ``local`` or
    ``missing``. ``problem`` says what the gate would not let pass, and what to do about it.
    """

    target: str
    role: str
    path: str
    writable: bool
    optional: bool
    state: str
    template: str | None = None
    percent: int | None = None
    seconds_left: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the hook would say now, without starting a fetch, and why.

    ``problems`` are chains that cannot be made out: libvirt itself refuses those.
    """

    domain: str
    allowed: bool
    message: str
    files: tuple[GateFileReport, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AttachTemplate:
    """The body of ``POST /v1/domains/{domain}/attach``; the template has to be here."""

    __pydantic_config__ = _STRICT

    template: str
    target: str
    persistent: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """``change`` is ``medium`` (of a drive that was there) or ``disk``."""

    domain: str
    target: str
    path: str
    change: str


@dataclass(frozen=True, slots=True)
class Autostart:
    """The body of ``PUT /v1/domains/{domain}/autostart``."""

    __pydantic_config__ = _STRICT

    enabled: bool


@dataclass(frozen=True, slots=True)
class AutostartDomain:
    """A domain that ``ddfs autostart run`` starts (``enabled``), or not any more."""

    domain: str
    enabled: bool
    active: bool


@dataclass(frozen=True, slots=True)
class CloneTemplate:
    """The body of ``POST /v1/clones``; see :class:`ddfs.clone.CloneOrder`."""

    __pydantic_config__ = _STRICT

    template: str
    volume: str
    pool: str | None = None
    size: int | None = None
    full: bool = False
    replace: bool = False


@dataclass(frozen=True, slots=True)
class ClonedVolume:
    """``how`` is ``overlay``, ``reflink`` or ``copy``; ``capacity`` in bytes."""

    pool: str
    volume: str
    path: str
    format: str
    capacity: int
    how: str
    replaced: bool
