"""libvirt's storage pools whose volumes are files, for disks that ddfs makes there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import libvirt
import trio
from defusedxml.ElementTree import fromstring

from ddfs import errors
from ddfs.virt.connection import Libvirt

log = logging.getLogger(__name__)

FILE_POOLS: Final = ("dir", "fs", "netfs")

# "pool has asynchronous jobs running" (see virt/pools.py): somebody copies a volume there.
_REFRESH_TRIES: Final = 5
_REFRESH_PAUSE_SECONDS: Final = 0.5


class Volumes:
    """The pools of *libvirt*."""

    def __init__(self, libvirt: Libvirt) -> None:
        self._libvirt = libvirt

    async def directory(self, pool: str) -> Path:
        """Where the volumes of *pool*, which has to be active, lie.

        Raises :class:`errors.LibvirtError`, and :class:`errors.InvalidValueError` for a pool
        whose volumes are no files.
        """
        return await self._libvirt.call(lambda c: _directory(_lookup(c, pool)))

    async def capacity(self, pool: str, volume: str) -> int | None:
        """The size of the disk in *volume*, in bytes; None where libvirt sees none."""
        return await self._libvirt.call(lambda c: _capacity(_lookup(c, pool), volume))

    async def refresh(self, pool: str) -> None:
        """Let libvirt see what is new. A refusal is logged: the next refresh will do."""
        for number in range(_REFRESH_TRIES):
            try:
                await self._libvirt.call(lambda c: _lookup(c, pool).refresh(0))
            except errors.LibvirtError as error:
                if number == _REFRESH_TRIES - 1:
                    log.warning("pool %s was not refreshed: %s", pool, error)
                await trio.sleep(_REFRESH_PAUSE_SECONDS)
            else:
                return


def _lookup(connection: libvirt.virConnect, name: str) -> libvirt.virStoragePool:
    try:
        return connection.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
            raise
        raise errors.LibvirtError(
            f"no storage pool called {name!r}; virsh pool-list --all shows those there are, and "
            "--pool chooses one",
            libvirt.VIR_ERR_NO_STORAGE_POOL,
        ) from error


def _directory(pool: libvirt.virStoragePool) -> Path:
    description = fromstring(pool.XMLDesc(0))
    kind, target = description.get("type", ""), description.findtext("target/path")
    if kind not in FILE_POOLS or not target:
        how = f"virsh vol-create-from {pool.name()} XML TEMPLATE --inputpool with the template pool"
        if kind == "rbd":
            how = f"ddfs clone TEMPLATE VOLUME --pool {pool.name()} --full"
        raise errors.InvalidValueError(
            f"pool {pool.name()} is of type {kind}, whose volumes are no files; use {how}"
        )
    if not pool.isActive():
        raise errors.LibvirtError(
            f"pool {pool.name()} is not active; start it with: virsh pool-start {pool.name()}",
            libvirt.VIR_ERR_OPERATION_INVALID,
        )
    return Path(target)


def _capacity(pool: libvirt.virStoragePool, name: str) -> int | None:
    for is_last in (False, True):
        try:
            return int(pool.storageVolLookupByName(name).info()[1])
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise
        if not is_last:
            pool.refresh(0)
    return None
