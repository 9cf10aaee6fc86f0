"""What crosses the control socket about deployments; see :mod:`messages`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_STRICT: Final = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Deploy:
    """The body of ``POST /v1/deployments`` and ``POST /v1/deployments/obstacles``.

    See :class:`ddfs.deploy.DeployOrder`; ``user_data`` is text. With a ``token`` (16 to 64
    letters, digits and -) the domain is taken back unless it is confirmed by
    ``PUT /v1/deployments/{token}`` within a minute after the answer; without, it stays if the
    answer could be given.
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
    token: str | None = None
    # Also in a kind of pool in which ddfs was never tested to deploy (rbd).
    untested: bool = False


@dataclass(frozen=True, slots=True)
class Obstacles:
    """Why a host cannot run it, a line each; empty if it can.

    Without ``knows_template`` the template has to be registered there first.
    """

    reasons: tuple[str, ...]
    knows_template: bool = True


@dataclass(frozen=True, slots=True)
class DeployedDomain:
    """A domain that runs now."""

    name: str
    uuid: str
    disk: str
    seed: str | None = None
