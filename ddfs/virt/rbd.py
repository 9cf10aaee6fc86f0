"""libvirt's pools of type rbd: where their images are, and images made and deleted. All of it
blocks, on a connection of its own for each call (see :mod:`volume_pool`): a Ceph that does not
answer holds libvirt for half a minute.
"""

from __future__ import annotations

import contextlib
from typing import Final
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

import libvirt
from defusedxml.ElementTree import fromstring

from ddfs import errors
from ddfs.model import RbdPool
from ddfs.virt.connection import opened

# <rbd:config_opts>: settings of librados for one pool (docs/formatstorage.html).
_OPTIONS: Final = "{http://libvirt.org/schemas/storagepool/rbd/1.0}"


class RbdPools:
    """Those of the libvirt at *uri*. All methods raise :class:`errors.LibvirtError`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def find(self, pool: str) -> RbdPool | None:
        """Where the images of an active *pool* are; None if it is of another type, or not there.

        The key comes from libvirt's secret (virSecretGetValue). Raises
        :class:`errors.InvalidValueError` for a description that cannot be used.
        """
        with opened(self._uri) as connection:
            try:
                found = connection.storagePoolLookupByName(pool)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                    raise
                return None
            description = fromstring(found.XMLDesc(0))
            if description.get("type") != "rbd":
                return None
            if not found.isActive():
                raise errors.LibvirtError(
                    f"pool {pool} is not active; start it with: virsh pool-start {pool}",
                    libvirt.VIR_ERR_OPERATION_INVALID,
                )
            auth = description.find("source/auth")
            key = _key(connection, pool, auth) if auth is not None else b""
            return described(description, key)

    def free_bytes(self, pool: str) -> int:
        """What Ceph says is free there."""
        with opened(self._uri) as connection:
            return int(connection.storagePoolLookupByName(pool).info()[3])

    def has(self, pool: str, image: str) -> bool:
        """Whether an image has that name now, whoever has made it."""
        with opened(self._uri) as connection:
            found = connection.storagePoolLookupByName(pool)
            found.refresh(0)
            return _has(found, image)

    def create(self, pool: str, image: str, size: int) -> None:
        """Make an empty image of *size* bytes; :class:`errors.NameTakenError`."""
        document = (
            f"<volume><name>{escape(image)}</name><capacity unit='bytes'>{size}</capacity>"
            "<allocation unit='bytes'>0</allocation></volume>"
        )
        with opened(self._uri) as connection:
            found = connection.storagePoolLookupByName(pool)
            # Another host may have made one of that name since.
            found.refresh(0)
            try:
                found.createXML(document, 0)
            except libvirt.libvirtError as error:
                # Drivers do not agree on the code.
                if not _has(found, image):
                    raise
                raise errors.NameTakenError(
                    f"pool {pool} has a volume {image} already; choose another name, or delete it "
                    f"with: virsh vol-delete {image} {pool}"
                ) from error

    def delete(self, pool: str, image: str) -> None:
        """Delete an image; none of that name is fine."""
        with opened(self._uri) as connection:
            found = connection.storagePoolLookupByName(pool)
            try:
                found.storageVolLookupByName(image).delete(0)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                    raise


def _has(pool: libvirt.virStoragePool, image: str) -> bool:
    try:
        pool.storageVolLookupByName(image)
    except libvirt.libvirtError:
        return False
    return True


def described(description: Element, key: bytes) -> RbdPool:
    """What the XML of a pool says; :class:`errors.InvalidValueError` if that cannot be used."""
    auth = description.find("source/auth")
    hosts = description.findall("source/host")
    options = description.findall(f"{_OPTIONS}config_opts/{_OPTIONS}option")
    return RbdPool(
        description.findtext("source/name") or "",
        tuple(_monitor(host.get("name", ""), host.get("port")) for host in hosts),
        auth.get("username", "") if auth is not None else None,
        key,
        tuple((option.get("name", ""), option.get("value", "")) for option in options),
        _named_secret(auth),
    )


def _named_secret(auth: Element | None) -> tuple[str, str] | None:
    named = auth.find("secret") if auth is not None else None
    if named is None:
        return None
    return next(((key, named.get(key, "")) for key in ("uuid", "usage") if named.get(key)), None)


def _monitor(name: str, port: str | None) -> str:
    bare = name.strip("[]")
    host = f"[{bare}]" if ":" in bare else bare
    return f"{host}:{port}" if port and port != "0" else host


def _key(connection: libvirt.virConnect, pool: str, auth: Element) -> bytes:
    named = auth.find("secret")
    identity = named.get("uuid") if named is not None else None
    usage = named.get("usage", "") if named is not None else ""
    value = None
    with contextlib.suppress(libvirt.libvirtError):
        if identity:
            value = connection.secretLookupByUUIDString(identity).value(0)
        elif usage:
            kind = libvirt.VIR_SECRET_USAGE_TYPE_CEPH
            value = connection.secretLookupByUsage(kind, usage).value(0)
    if not value:
        raise errors.LibvirtError(
            f"pool {pool}: libvirt does not give the value of its secret {identity or usage}; it "
            "has to be set (virsh secret-set-value), and not private (private='no')"
        )
    return bytes(value)
