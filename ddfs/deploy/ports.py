"""What a deployment needs of the host. libvirt's own all raise :class:`errors.LibvirtError`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ddfs.clone import Clone, CloneOrder, Undo
from ddfs.deploy.order import Deployed, DeployOrder


class Facts(Protocol):
    """What the host is and has free."""

    @property
    def arch(self) -> str:
        """As libvirt names it."""

    @property
    def hypervisor(self) -> str:
        """``kvm`` or ``qemu``."""

    @property
    def free_memory_bytes(self) -> int:
        """Caches included."""


class Hypervisor(Protocol):
    """libvirt's domains."""

    async def facts(self) -> Facts:
        """Of the host, now."""

    async def has_domain(self, name: str) -> bool:
        """Whether the name is taken."""

    async def network_problem(self, order: DeployOrder) -> str | None:
        """Why the domain could not start on its network; None if it could, or has none."""

    async def define(self, order: DeployOrder, made: Deployed, facts: Facts) -> None:
        """Define it; :class:`errors.InvalidValueError` for a document that is none."""

    async def start(self, identity: str) -> None:
        """Start the one with that UUID."""

    async def remove(self, identity: str) -> None:
        """End and undefine the one with that UUID, if it is there."""

    def needs(self, order: DeployOrder) -> tuple[str | None, int]:
        """The architecture, None for any, and the memory in bytes that it takes."""


class Disks(Protocol):
    """Makes disks; ``ddfs.clone.Clones`` does."""

    async def make(self, order: CloneOrder, undo: Undo) -> Clone:
        """Make one."""


class Pools(Protocol):
    """libvirt's storage pools whose volumes are files."""

    async def directory(self, pool: str) -> Path:
        """Where the volumes of an active pool lie."""

    async def refresh(self, pool: str) -> None:
        """Let libvirt see what has changed."""
