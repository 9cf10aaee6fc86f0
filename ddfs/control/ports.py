"""What the API's service asks of libvirt and of primary storage; ``daemon.py`` hands it in.

libvirt's own all raise :class:`ddfs.errors.LibvirtError`. The gate is not given any of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class VolumePoolState(Protocol):
    """How libvirt's pool is, with the meaning of :class:`PoolStatus`'s fields."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def path(self) -> str:
        """Its directory."""

    @property
    def active(self) -> bool:
        """Whether libvirt shows it."""

    @property
    def volumes(self) -> int | None:
        """How many libvirt knows of, None while it is not active."""


class VolumePool(Protocol):
    """libvirt's pool on the mount."""

    async def define(self, name: str | None) -> VolumePoolState:
        """Define and start it, or adopt the one that is there."""

    async def refresh(self) -> VolumePoolState:
        """Let libvirt look again."""

    async def undefine(self) -> VolumePoolState:
        """Take it away from libvirt."""


class Domains(Protocol):
    """libvirt's domains."""

    async def domain_xml(self, name: str) -> bytes:
        """The XML of one."""

    async def all_xml(self) -> dict[str, bytes]:
        """The XML of all, by name; raises :class:`errors.LibvirtError`."""

    async def start(self, name: str) -> None:
        """Start one."""


class Room(Protocol):
    """How full a primary storage is, in bytes."""

    @property
    def total(self) -> int:
        """Of its file system."""

    @property
    def free(self) -> int:
        """Of its file system."""

    @property
    def held(self) -> int:
        """By ddfs."""

    @property
    def quota(self) -> int | None:
        """The limit of that."""

    @property
    def keep_free(self) -> int:
        """Nobody's."""


class PrimaryStorage(Protocol):
    """A primary storage, as far as it is shown."""

    @property
    def name(self) -> str:
        """What the settings call it."""

    @property
    def path(self) -> Path:
        """Its directory."""

    def room(self) -> Room:
        """How full it is."""
