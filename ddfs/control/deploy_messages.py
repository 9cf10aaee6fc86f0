"""What crosses the control socket about deployments; see :mod:`messages`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_STRICT: Final = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Deploy:
    """The body of ``POST /v1/deployments`` and ``POST /v1/deployments/obstacles``.

    See :class:`ddfs.deploy.DeployOrder`; ``user_data`` is text.
    """

    __pydantic_config__ = _STRICT

    template: str
    name: str
    pool: str | None = None
    memory_mib: int | None = None
    vcpus: int | None = None
    disk_size: int | None = None
    network: str | None = None
    arch: str | None = None
    user_data: str | None = None
    xml: str | None = None


@dataclass(frozen=True, slots=True)
class Obstacles:
    """Why a host cannot run it, a line each; empty if it can."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeployedDomain:
    """A domain that runs now."""

    name: str
    uuid: str
    disk: str
    seed: str | None = None
