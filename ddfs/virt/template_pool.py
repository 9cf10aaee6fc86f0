"""The storage pool of libvirt that shows the mount. Blocks; run by ``Libvirt.call``.

A ``dir`` pool: ``fs`` and ``netfs`` ones cannot mount FUSE, and libvirt unmounts what lies
under them when they stop or when a refresh fails (virStorageBackendFileSystemStop).

It is defined without autostart, which would gain nothing: a ``dir`` pool whose directory is
there when libvirtd starts becomes active anyway (storagePoolUpdateAllState; tried), and one
whose directory is missing, because the mount comes later, cannot be started by libvirtd but
only logs an error. The keeper starts it once both are up. A pool that somebody else defined
on that path is taken as it is, autostart included.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import libvirt
from defusedxml.ElementTree import fromstring

from ddfs import errors

DEFAULT_NAME: Final = "ddfs"


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The pool. ``volumes`` is how many libvirt knows of, None while it is not active."""

    name: str
    path: str
    active: bool
    volumes: int | None = None


@dataclass(frozen=True, slots=True)
class TemplatePool:
    """The pool on *path*, a directory of the mount, whatever its name.

    All methods raise ``libvirtError`` and :class:`errors.LibvirtError`; each can be repeated.
    """

    path: Path

    def status(self, connection: libvirt.virConnect) -> PoolStatus | None:
        """The pool as it is, None if there is none."""
        found = self._find(connection)
        return None if found is None else self._status_of(found)

    def define(self, connection: libvirt.virConnect, name: str | None) -> PoolStatus:
        """Define the pool as *name* and start it; one that is there is adopted and started.

        Fails without a trace when the name is taken by another pool. When it cannot be
        started it stays defined.
        """
        pool = self._find(connection)
        if pool is None:
            pool = self._make(connection, name or DEFAULT_NAME)
        if not pool.isActive():
            pool.create(0)
        return self._status_of(pool)

    def start(self, connection: libvirt.virConnect) -> PoolStatus | None:
        """Start the pool if it is there and not active."""
        pool = self._find(connection)
        if pool is None:
            return None
        if not pool.isActive():
            pool.create(0)
        return self._status_of(pool)

    def refresh(self, connection: libvirt.virConnect) -> PoolStatus:
        """Make libvirt list the directory anew; starting an inactive one does that too."""
        pool = self._required(connection)
        if pool.isActive():
            pool.refresh(0)
        else:
            pool.create(0)
        return self._status_of(pool)

    def undefine(self, connection: libvirt.virConnect) -> PoolStatus:
        """Take the pool away. virStoragePoolDestroy only deactivates a ``dir`` pool."""
        pool = self._required(connection)
        name, is_persistent = pool.name(), pool.isPersistent()
        if pool.isActive():
            pool.destroy()
        if is_persistent:  # a transient one is gone by now
            pool.undefine()
        return PoolStatus(name, str(self.path), active=False)

    def _status_of(self, pool: libvirt.virStoragePool) -> PoolStatus:
        active = bool(pool.isActive())
        volumes = pool.numOfVolumes() if active else None
        return PoolStatus(pool.name(), str(self.path), active, volumes)

    def _required(self, connection: libvirt.virConnect) -> libvirt.virStoragePool:
        pool = self._find(connection)
        if pool is None:
            raise errors.LibvirtError(
                f"libvirt has no pool on {self.path}; make one with: ddfs pool define",
                libvirt.VIR_ERR_NO_STORAGE_POOL,
            )
        return pool

    def _find(self, connection: libvirt.virConnect) -> libvirt.virStoragePool | None:
        wanted = os.path.normpath(self.path)
        # Not virStoragePoolLookupByTargetPath: it looks at active pools only.
        for pool in connection.listAllStoragePools(0):
            try:
                description = fromstring(pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                    continue  # undefined since it was listed
                raise
            target = description.findtext("target/path")
            if target is not None and os.path.normpath(target) == wanted:
                _refuse_other_kinds(description.get("type", ""), pool.name(), self.path)
                return pool
        return None

    def _make(self, connection: libvirt.virConnect, name: str) -> libvirt.virStoragePool:
        if any(pool.name() == name for pool in connection.listAllStoragePools(0)):
            raise errors.LibvirtError(
                f"libvirt has a pool called {name!r} on another path; choose another name with "
                "--name",
                libvirt.VIR_ERR_OPERATION_FAILED,
            )
        return connection.storagePoolDefineXML(self._xml(name), 0)

    def _xml(self, name: str) -> str:
        pool = ElementTree.Element("pool", type="dir")
        ElementTree.SubElement(pool, "name").text = name
        target = ElementTree.SubElement(pool, "target")
        ElementTree.SubElement(target, "path").text = str(self.path)
        return ElementTree.tostring(pool, encoding="unicode")


def _refuse_other_kinds(kind: str, name: str, path: Path) -> None:
    if kind != "dir":
        raise errors.LibvirtError(
            f"libvirt's pool {name!r} on {path} is of type {kind!r}, which unmounts that "
            f"directory when it stops; take it away with: virsh pool-undefine {name}",
            libvirt.VIR_ERR_OPERATION_INVALID,
        )
