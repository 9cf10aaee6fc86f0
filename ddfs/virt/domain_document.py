"""The XML of a domain that is deployed. Pure."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import defusedxml
from defusedxml.ElementTree import fromstring

from ddfs import errors
from ddfs.model import RbdPool

# A domain with hundreds of devices has some 100 KiB.
MAX_DOCUMENT_BYTES: Final = 1024 * 1024

# A disk's backing chain is the deepest there is, two levels for each image; libvirt allows 200.
_MAX_LEVELS: Final = 512

# More than any host has, in bytes.
_AMOUNT: Final = re.compile(r"[0-9]{1,18}")

# What a machine gets that nobody said anything about.
DEFAULT_MEMORY_MIB: Final = 1024
DEFAULT_VCPUS: Final = 1
DEFAULT_NETWORK: Final = "default"
NO_NETWORK: Final = "none"


@dataclass(frozen=True, slots=True)
class RbdImage:
    """An image in Ceph: ``POOL/IMAGE``, the monitors (host and port, None for Ceph's own), and the
    user with libvirt's secret (``uuid`` or ``usage``, and its value).
    """

    name: str
    monitors: tuple[tuple[str, str | None], ...]
    user: str | None = None
    secret: tuple[str, str] | None = None

    @classmethod
    def of(cls, pool: RbdPool, name: str) -> RbdImage:
        """The one called *name* in *pool*, which has the user and monitors."""
        return cls(name, tuple(map(_host_and_port, pool.monitors)), pool.user, pool.secret)


def _host_and_port(monitor: str) -> tuple[str, str | None]:
    """Of ``host``, ``host:port`` or ``[address]:port``."""
    host, colon, port = monitor.rpartition(":")
    if not colon or monitor.endswith("]"):
        host, port = monitor, ""
    return host.strip("[]"), port or None


@dataclass(frozen=True, slots=True)
class Machine:
    """What a domain is made of. ``seed`` is cloud-init's disk, if there is one; both are a qcow2
    and a raw file, or raw images in Ceph.

    ``hypervisor`` is ``kvm`` or ``qemu`` (emulated); ``memory_mib`` and ``vcpus`` None: as the
    document says that was given, else the defaults; ``network`` None likewise, ``none`` for
    no network at all.
    """

    name: str
    uuid: str
    disk: str | RbdImage
    hypervisor: str
    arch: str
    seed: str | RbdImage | None = None
    memory_mib: int | None = None
    vcpus: int | None = None
    network: str | None = None


def parse(document: str) -> Element:
    """The ``<domain>`` of *document*; :class:`errors.InvalidValueError` in one line."""
    if len(document) > MAX_DOCUMENT_BYTES:
        raise errors.InvalidValueError(f"domain XML: larger than {MAX_DOCUMENT_BYTES} bytes")
    try:
        domain = fromstring(document, forbid_dtd=True)
    except (ElementTree.ParseError, defusedxml.DefusedXmlException, ValueError) as error:
        raise errors.InvalidValueError(f"domain XML: {error}") from None
    if domain.tag != "domain":
        raise errors.InvalidValueError(f"domain XML: it is a <{domain.tag[:40]}>, not a <domain>")
    _refuse_depth(domain)
    found: Element = domain
    return found


def _refuse_depth(domain: Element) -> None:
    """Writing it out again goes down level by level in Python."""
    level = [domain]
    for _ in range(_MAX_LEVELS):
        level = [child for element in level for child in element]
        if not level:
            return
    raise errors.InvalidValueError(f"domain XML: more than {_MAX_LEVELS} levels")


def arch_of(document: str) -> str | None:
    """The architecture that *document* asks for, None where it asks for none."""
    kind = parse(document).find("os/type")
    return kind.get("arch") if kind is not None else None


def memory_bytes_of(document: str) -> int | None:
    """The memory that *document* gives its domain; None where it says nothing usable."""
    element = parse(document).find("memory")
    text = (element.text or "").strip() if element is not None else ""
    if element is None or _AMOUNT.fullmatch(text) is None:
        return None
    unit = element.get("unit", "KiB")
    power = {"b": 0, "bytes": 0, "k": 1, "KiB": 1, "M": 2, "MiB": 2, "G": 3, "GiB": 3}.get(unit)
    return None if power is None else int(text) * 1024**power


def own_document(machine: Machine) -> str:
    """A machine with a disk, a network card and a serial console."""
    domain = Element("domain", type=machine.hypervisor)
    _named(domain, machine)
    _sized(domain, machine, is_new=True)
    system = SubElement(domain, "os")
    SubElement(system, "type", arch=machine.arch).text = "hvm"
    SubElement(system, "boot", dev="hd")
    features = SubElement(domain, "features")
    SubElement(features, "acpi")
    if machine.hypervisor == "kvm":
        SubElement(domain, "cpu", mode="host-passthrough")
    devices = SubElement(domain, "devices")
    _add_disk(devices, machine.disk, "vda")
    if machine.seed is not None:
        _add_seed(devices, machine.seed)
    if machine.network != NO_NETWORK:
        card = SubElement(devices, "interface", type="network")
        SubElement(card, "source", network=machine.network or DEFAULT_NETWORK)
        SubElement(card, "model", type="virtio")
    SubElement(devices, "console", type="pty")
    source = SubElement(devices, "rng", model="virtio")
    SubElement(source, "backend", model="random").text = "/dev/urandom"
    return ElementTree.tostring(domain, encoding="unicode")


def filled_document(document: str, machine: Machine) -> str:
    """The operator's *document* as *machine*: name and UUID are new, its first disk is the new one.

    What the machine says of memory, processors and network replaces what the document says.
    """
    domain = parse(document)
    _named(domain, machine)
    _sized(domain, machine, is_new=False)
    devices = domain.find("devices")
    if devices is None:
        devices = SubElement(domain, "devices")
    disks = [d for d in devices.findall("disk") if d.get("device", "disk") == "disk"]
    if disks:
        _replace_disk(disks[0], machine.disk)
    else:
        _add_disk(devices, machine.disk, "vda")
    if machine.seed is not None:
        _add_seed(devices, machine.seed, {t.get("dev", "") for t in devices.findall("disk/target")})
    if machine.network is not None:
        for card in devices.findall("interface"):
            devices.remove(card)
        if machine.network != NO_NETWORK:
            card = SubElement(devices, "interface", type="network")
            SubElement(card, "source", network=machine.network)
            SubElement(card, "model", type="virtio")
    return ElementTree.tostring(domain, encoding="unicode")


def _named(domain: Element, machine: Machine) -> None:
    for tag, text in (("name", machine.name), ("uuid", machine.uuid)):
        element = domain.find(tag)
        if element is None:
            element = Element(tag)
            domain.insert(0, element)
        element.text = text


def _sized(domain: Element, machine: Machine, *, is_new: bool) -> None:
    memory = machine.memory_mib or (DEFAULT_MEMORY_MIB if is_new else None)
    if memory is not None:
        for tag in ("memory", "currentMemory"):
            element = domain.find(tag)
            if element is not None:
                domain.remove(element)
        SubElement(domain, "memory", unit="MiB").text = str(memory)
    vcpus = machine.vcpus or (DEFAULT_VCPUS if is_new else None)
    if vcpus is not None:
        element = domain.find("vcpu")
        if element is None:
            element = SubElement(domain, "vcpu")
        element.attrib.pop("current", None)
        element.text = str(vcpus)


def _add_disk(devices: Element, image: str | RbdImage, target: str) -> None:
    disk = SubElement(devices, "disk", device="disk")
    _fill_disk(disk, image, discard=True)
    SubElement(disk, "target", dev=target, bus="virtio")


def _replace_disk(disk: Element, image: str | RbdImage) -> None:
    for tag in ("source", "backingStore", "driver", "auth"):
        for element in disk.findall(tag):
            disk.remove(element)
    _fill_disk(disk, image, discard=False)


def _fill_disk(disk: Element, image: str | RbdImage, *, discard: bool) -> None:
    """Say where its bytes are, before all else that it has."""
    driver = Element("driver", name="qemu", type="qcow2" if isinstance(image, str) else "raw")
    if discard:
        # What the guest deletes does not stay in the image.
        driver.set("discard", "unmap")
    disk.insert(0, driver)
    disk.insert(1, _source(disk, image))


def _source(disk: Element, image: str | RbdImage) -> Element:
    """Its ``<source>``, and the type of *disk* that goes with it."""
    if isinstance(image, str):
        disk.set("type", "file")
        return Element("source", file=image)
    disk.set("type", "network")
    source = Element("source", protocol="rbd", name=image.name)
    for host, port in image.monitors:
        SubElement(source, "host", {"name": host, **({"port": port} if port else {})})
    if image.user is not None and image.secret is not None:
        auth = SubElement(source, "auth", username=image.user)
        key, value = image.secret
        SubElement(auth, "secret", {"type": "ceph", key: value})
    return source


def _add_seed(devices: Element, seed: str | RbdImage, taken: Set[str] = frozenset()) -> None:
    free = [f"sd{letter}" for letter in ascii_lowercase if f"sd{letter}" not in taken]
    if not free:
        raise errors.InvalidValueError("domain XML: sda to sdz are taken, and user data needs one")
    disk = SubElement(devices, "disk", device="cdrom")
    SubElement(disk, "driver", name="qemu", type="raw")
    disk.append(_source(disk, seed))
    SubElement(disk, "target", dev=free[0], bus="sata")
    SubElement(disk, "readonly")
