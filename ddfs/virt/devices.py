"""Templates given to domains as devices: media of drives, and read-only disks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

import libvirt
from defusedxml.ElementTree import fromstring

from ddfs import errors
from ddfs.virt.connection import Libvirt
from ddfs.virt.domains import lookup

_DRIVES: Final = ("cdrom", "floppy")


@dataclass(frozen=True, slots=True)
class _Attachment:
    target: str
    path: str
    driver: str
    kind: str
    persistent: bool
    force: bool


class Devices:
    """The devices of *libvirt*'s domains."""

    def __init__(self, libvirt: Libvirt) -> None:
        self._libvirt = libvirt

    async def attach(
        self,
        domain: str,
        target: str,
        path: str,
        driver: str,
        *,
        kind: str = "file",
        persistent: bool = False,
        force: bool = False,
    ) -> str:
        """Put *path* into the drive at *target* (returns ``medium``), or attach a read-only
        disk there (``disk``).

        ``driver`` is QEMU's name of the format, ``kind`` says whether it is a ``file`` or a
        ``block`` device. ``persistent``: also when the domain starts
        next; without it the domain has to be running, and nothing else is changed even where
        it ends meanwhile. ``force``: also into a drive that the guest has locked. Raises
        :class:`errors.LibvirtError`, and :class:`errors.InvalidValueError` for a target that
        another disk has. No hook runs: the file has to be complete.
        """
        attachment = _Attachment(target, path, driver, kind, persistent, force)
        return await self._libvirt.call(lambda c: _attach(lookup(c, domain), attachment))

    async def check(self, domain: str, target: str, *, persistent: bool = False) -> None:
        """Raise what :meth:`attach` would raise already now, before anything is fetched."""
        await self._libvirt.call(lambda c: _look(lookup(c, domain), target, persistent))


def _attach(domain: libvirt.virDomain, attachment: _Attachment) -> str:
    flags, there = _look(domain, attachment.target, attachment.persistent)
    if there is None:
        domain.attachDeviceFlags(_disk_xml(attachment, "disk", None), flags)
        return "disk"
    if attachment.force:
        flags |= libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE
    target = there.find("target")
    bus = target.get("bus") if target is not None else None
    domain.updateDeviceFlags(_disk_xml(attachment, there.get("device", ""), bus), flags)
    return "medium"


def _look(
    domain: libvirt.virDomain, target: str, persistent: bool
) -> tuple[int, ElementTree.Element | None]:
    """What is to be changed (VIR_DOMAIN_AFFECT_…), and the drive at *target*, if one is there.

    Never VIR_DOMAIN_AFFECT_CURRENT: a domain that ends meanwhile would get it for its next start.
    """
    is_active = bool(domain.isActive())
    if not is_active and not persistent:
        raise errors.LibvirtError(
            f"{domain.name()} is not running; with --persistent it gets it for its next start",
            libvirt.VIR_ERR_OPERATION_INVALID,
        )
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if is_active else 0
    if persistent:
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    there = _disk_at(domain, target, is_active)
    if there is not None and there.get("device", "disk") not in _DRIVES:
        raise errors.InvalidValueError(
            f"{domain.name()} has a disk at {target} already; choose a free target, "
            "or that of a cdrom drive"
        )
    return flags, there


def _disk_at(domain: libvirt.virDomain, target: str, is_active: bool) -> ElementTree.Element | None:
    xml = domain.XMLDesc(0 if is_active else libvirt.VIR_DOMAIN_XML_INACTIVE)
    for disk in fromstring(xml).iterfind("devices/disk"):
        element = disk.find("target")
        if element is not None and element.get("dev") == target:
            found: ElementTree.Element = disk
            return found
    return None


def _disk_xml(attachment: _Attachment, device: str, bus: str | None) -> str:
    disk = ElementTree.Element("disk", type=attachment.kind, device=device)
    ElementTree.SubElement(disk, "driver", name="qemu", type=attachment.driver)
    attribute = "dev" if attachment.kind == "block" else "file"
    ElementTree.SubElement(disk, "source", {attribute: attachment.path})
    target = ElementTree.SubElement(disk, "target", dev=attachment.target)
    if bus is not None:
        target.set("bus", bus)
    ElementTree.SubElement(disk, "readonly")
    return ElementTree.tostring(disk, encoding="unicode")
