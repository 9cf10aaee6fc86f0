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
        persistent: bool = False,
        force: bool = False,
    ) -> str:
        """Put *path* into the drive at *target* (returns ``medium``), or attach a read-only
        disk there (``disk``). A domain that is off gets it for its next start.

        ``driver`` is QEMU's name of the format. ``persistent``: also when the domain starts
        next. ``force``: also into a drive that the guest has locked. Raises
        :class:`errors.LibvirtError`, and :class:`errors.InvalidValueError` for a target that
        another disk has. No hook runs: the file has to be complete.
        """
        attachment = _Attachment(target, path, driver, persistent, force)
        return await self._libvirt.call(lambda c: _attach(lookup(c, domain), attachment))


def _attach(domain: libvirt.virDomain, attachment: _Attachment) -> str:
    is_active = bool(domain.isActive())
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if is_active else libvirt.VIR_DOMAIN_AFFECT_CONFIG
    if attachment.persistent and domain.isPersistent():
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    there = _disk_at(domain, attachment.target, is_active)
    if there is None:
        domain.attachDeviceFlags(_disk_xml(attachment, "disk", None), flags)
        return "disk"
    device = there.get("device", "disk")
    if device not in _DRIVES:
        raise errors.InvalidValueError(
            f"{domain.name()} has a disk at {attachment.target} already; choose a free target, "
            "or that of a cdrom drive"
        )
    if attachment.force:
        flags |= libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE
    target = there.find("target")
    bus = target.get("bus") if target is not None else None
    domain.updateDeviceFlags(_disk_xml(attachment, device, bus), flags)
    return "medium"


def _disk_at(domain: libvirt.virDomain, target: str, is_active: bool) -> ElementTree.Element | None:
    xml = domain.XMLDesc(0 if is_active else libvirt.VIR_DOMAIN_XML_INACTIVE)
    for disk in fromstring(xml).iterfind("devices/disk"):
        element = disk.find("target")
        if element is not None and element.get("dev") == target:
            found: ElementTree.Element = disk
            return found
    return None


def _disk_xml(attachment: _Attachment, device: str, bus: str | None) -> str:
    disk = ElementTree.Element("disk", type="file", device=device)
    ElementTree.SubElement(disk, "driver", name="qemu", type=attachment.driver)
    ElementTree.SubElement(disk, "source", file=attachment.path)
    target = ElementTree.SubElement(disk, "target", dev=attachment.target)
    if bus is not None:
        target.set("bus", bus)
    ElementTree.SubElement(disk, "readonly")
    return ElementTree.tostring(disk, encoding="unicode")
