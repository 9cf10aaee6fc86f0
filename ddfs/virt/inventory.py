"""Everything that libvirt knows of that could use a template. Blocks; run by ``Libvirt.call``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import libvirt
from defusedxml.ElementTree import fromstring

from ddfs.virt.connection import Libvirt

# Pools whose volumes are the files of a directory (virStorageBackend tables). Their directory
# is looked at itself: libvirt's list is as old as its last refresh.
_DIRECTORY_KINDS: Final = frozenset({"dir", "fs", "netfs", "vstorage"})


@dataclass
class Inventory:
    """Domain documents, directories and images, each with what it is of; and what libvirt
    could not say, each with the reason, in one line.
    """

    documents: dict[str, bytes] = field(default_factory=dict)
    directories: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)


class HostInventory:
    """The inventory of *libvirt*, without the pool on *templates_dir*, which is ours."""

    def __init__(self, libvirt: Libvirt, templates_dir: Path) -> None:
        self._libvirt = libvirt
        self._templates_dir = os.path.normpath(templates_dir)

    async def take(self) -> Inventory:
        """All of it, as of now; raises :class:`ddfs.errors.LibvirtError`."""
        return await self._libvirt.call(lambda c: _take(c, self._templates_dir))


def _take(connection: libvirt.virConnect, templates_dir: str) -> Inventory:
    inventory = Inventory()
    for domain in connection.listAllDomains(0):
        _ask(inventory, f"domain {domain.name()}", partial(_add_domain, inventory, domain))
    for pool in connection.listAllStoragePools(0):
        _ask(
            inventory,
            f"pool {pool.name()}",
            partial(_add_pool, inventory, pool, templates_dir),
        )
    return inventory


# What was there when it was listed may be gone when it is asked.
_GONE: Final = {
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT,
    libvirt.VIR_ERR_NO_STORAGE_POOL,
    libvirt.VIR_ERR_NO_STORAGE_VOL,
}


def _ask(inventory: Inventory, what: str, question: Callable[[], None]) -> None:
    try:
        question()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _GONE:
            text = " ".join((error.get_error_message() or str(error)).split())
            inventory.obstacles.append(f"{what}: {text}")
    except (ElementTree.ParseError, ValueError) as error:
        inventory.obstacles.append(f"{what}: its document makes no sense: {error}")


def _add_domain(inventory: Inventory, domain: libvirt.virDomain) -> None:
    name = domain.name()
    inventory.documents[f"domain {name}"] = domain.XMLDesc(0).encode()
    if domain.isActive() and domain.isPersistent():
        later = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).encode()
        inventory.documents[f"domain {name} (when started again)"] = later
    if domain.isPersistent() and domain.hasManagedSaveImage(0):
        saved = domain.managedSaveGetXMLDesc(0).encode()
        inventory.documents[f"saved state of domain {name}"] = saved
    for snapshot in domain.listAllSnapshots(0):
        what = f"snapshot {snapshot.getName()} of domain {name}"
        _ask(inventory, what, partial(_add_snapshot, inventory, what, snapshot))


def _add_snapshot(inventory: Inventory, what: str, snapshot: libvirt.virDomainSnapshot) -> None:
    """A snapshot holds the domain as it was, and the overlays that it made.

    https://libvirt.org/formatsnapshot.html
    """
    document = fromstring(snapshot.getXMLDesc(0))
    for number, domain in enumerate(_domains_in(document)):
        suffix = f" ({number + 1})" if number else ""
        inventory.documents[f"{what}{suffix}"] = ElementTree.tostring(domain)


def _domains_in(snapshot: ElementTree.Element) -> Iterator[ElementTree.Element]:
    for tag in ("domain", "inactiveDomain"):
        for element in snapshot.findall(tag):
            element.tag = "domain"
            yield element
    overlays = snapshot.findall("disks/disk")
    if overlays:
        domain = ElementTree.Element("domain")
        ElementTree.SubElement(domain, "devices").extend(overlays)
        yield domain


def _add_pool(inventory: Inventory, pool: libvirt.virStoragePool, templates_dir: str) -> None:
    description = fromstring(pool.XMLDesc(0))
    target = description.findtext("target/path")
    if target is not None and os.path.normpath(target) == templates_dir:
        return
    what = f"pool {pool.name()}"
    if not pool.isActive():
        inventory.obstacles.append(f"{what} is not active; start it, or undefine it")
    elif description.get("type") in _DIRECTORY_KINDS and target is not None:
        inventory.directories[target] = what
    else:
        for volume in pool.listAllVolumes(0):
            _ask(inventory, what, partial(_add_volume, inventory, what, volume))


def _add_volume(inventory: Inventory, what: str, volume: libvirt.virStorageVol) -> None:
    backing = fromstring(volume.XMLDesc(0)).findtext("backingStore/path")
    for path in (volume.path(), backing):
        if path is not None and path.startswith("/"):
            inventory.images[path] = f"{what}, volume {volume.name()}"
