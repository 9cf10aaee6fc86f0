"""The files that a libvirt domain names, from its XML alone.

The format is https://libvirt.org/formatdomain.html. At ``prepare begin`` libvirt has
translated nothing yet: a volume disk has pool and volume and no path, and there is no
``<backingStore>`` but what the user wrote. Pools are looked up in libvirt's own files,
because a hook that calls libvirt waits for ever.

Standard library only: the hook uses it. Expat itself, not ElementTree, because importing
it takes a third of the time; and named tuples, not dataclasses, because those bring
``inspect`` with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from xml.parsers import expat

from ddfs.image.header import ChainError

# libvirt itself refuses XML of more than 10 MB from clients (virxml.c, libxml2's limit).
MAX_XML_BYTES: Final = 16 * 1024 * 1024
# A domain with thousands of devices has some ten thousand elements and a depth of about
# 10, plus 2 for each explicit backing file, of which libvirt allows 200.
MAX_ELEMENTS: Final = 200_000
MAX_DEPTH: Final = 512

# What expat reads by itself; libvirt writes UTF-8. Python would look any other name up, and
# remember for ever that it knows none of that name: a daemon is asked about many documents.
ENCODINGS: Final = ("utf-8", "utf-16", "us-ascii", "iso-8859-1")

# What a volume is to QEMU, by the type of its pool (virStorageTranslateDomainDiskSourcePool):
# a pool on a directory calls everything in it a file, a link to a device as well.
_VOLUME_KINDS: Final = {
    "dir": "file", "fs": "file", "netfs": "file",
    "disk": "block", "logical": "block", "zfs": "block", "iscsi": "block", "scsi": "block",
}  # fmt: skip

POOL_DIRECTORIES: Final = ("/run/libvirt/storage", "/etc/libvirt/storage")
_MAX_POOL_BYTES: Final = 1024 * 1024


class DomainFile(NamedTuple):
    """One file that a domain uses.

    ``path`` as named; ``writable``: QEMU would open it for writing; ``optional``: the
    domain may start without it. ``role`` is disk, cdrom, floppy, lun, backing, data,
    mirror, kernel, initrd, dtb, loader, nvram or nvram-template; ``target`` the disk's
    name in the guest (``vda``), or the role again. ``kind`` is what a disk says that it is,
    ``file`` or ``block``: QEMU opens nothing else there. It is empty where libvirt looks itself.
    """

    path: str
    writable: bool
    optional: bool
    role: str
    target: str
    kind: str = ""


class Layer(NamedTuple):
    """One image of a disk, as the XML gives it.

    ``is_explicit_end``: an empty ``<backingStore/>`` or a further explicit layer stands
    under it, so that libvirt does not look into its header.
    """

    file: DomainFile
    format: str | None
    is_explicit_end: bool


class PoolTargets:
    """Where libvirt's storage pools lie, from *directories* of pool XML; earlier ones win.

    The defaults are the live state, then the configuration. Files are read when a name
    is asked for, and a file that is not a pool's XML counts as missing.
    """

    def __init__(self, directories: Sequence[str] = POOL_DIRECTORIES) -> None:
        self._directories = tuple(directories)

    def pool_target(self, name: str) -> str | None:
        """The target path of pool *name*, or None."""
        if not name or "/" in name or "\0" in name:
            return None
        for directory in self._directories:
            target = _target_in(os.path.join(directory, f"{name}.xml"), name)
            if target is not None:
                return target
        return None

    def pool_kind(self, name: str) -> str | None:
        """The type of pool *name* (``dir``, ``logical`` …), or None where there is none."""
        if not name or "/" in name or "\0" in name:
            return None
        for directory in self._directories:
            pool = _pool_in(os.path.join(directory, f"{name}.xml"), name)
            if pool is not None:
                return pool.get("type")
        return None

    def volume_path(self, pool: str, volume: str) -> str | None:
        """The path of *volume* in a pool whose volumes are files of its target, or None."""
        target = self.pool_target(pool)
        if target is None or not volume or "/" in volume or volume in (".", ".."):
            return None
        return os.path.join(target, volume)


def wrong_kind(path: str, template_path: str, kind: str) -> str:
    """Why QEMU would not open *path*, a template of that *kind*, and what to do: one line.

    Its drivers ``file`` and ``host_device`` refuse what the other is for (file-posix.c).
    """
    attribute = "dev" if kind == "block" else "file"
    lies = "on a block device" if kind == "block" else "in a file, not on a block device"
    return (
        f"{path}: this template lies {lies}; give the domain <disk type='{kind}'> with "
        f"<source {attribute}='{template_path}'/>, or an overlay on it"
    )


def files_of_domain(xml: bytes, pools: PoolTargets) -> tuple[DomainFile, ...]:
    """Every local file that the domain names, in the order of the XML.

    Raises :class:`ChainError` for XML that is malformed, too large, too deep, or has a
    document type.
    """
    return tuple(layer.file for layer in layers_of_domain(xml, pools))


def layers_of_domain(xml: bytes, pools: PoolTargets) -> tuple[Layer, ...]:
    """As :func:`files_of_domain`, with what a walk through the headers needs."""
    domain = parse(xml, "domain")
    layers: list[Layer] = []
    for boot in domain.all("os"):
        layers += _boot_files(boot)
    for devices in domain.all("devices"):
        for disk in devices.all("disk"):
            layers += _disk_layers(disk, pools)
    return tuple(layers)


class Element:
    """An element of a parsed document; just enough of one."""

    __slots__ = ("attributes", "children", "pieces", "tag")

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element] = []
        self.pieces: list[str] = []

    def all(self, tag: str) -> Iterator[Element]:
        """The children called *tag*."""
        return (child for child in self.children if child.tag == tag)

    def first(self, tag: str) -> Element | None:
        """The first child called *tag*, or None."""
        return next(self.all(tag), None)

    def has(self, tag: str) -> bool:
        """Whether there is a child called *tag*."""
        return self.first(tag) is not None

    def get(self, name: str) -> str | None:
        """An attribute; None when it is missing or empty."""
        return self.attributes.get(name) or None

    @property
    def text(self) -> str:
        """The text in it, without white space around."""
        return "".join(self.pieces).strip()


def parse(xml: bytes, root: str) -> Element:
    """The tree of *xml*, whose root element has to be called *root*."""
    if len(xml) > MAX_XML_BYTES:
        raise ChainError(f"the {root}'s XML is larger than {MAX_XML_BYTES} bytes")
    builder = _Builder(root)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.doctype
    parser.XmlDeclHandler = builder.declaration
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise ChainError(f"the {root}'s XML is malformed: {error}") from None
    except (ValueError, LookupError, UnicodeError) as error:
        if isinstance(error, ChainError):
            raise
        raise ChainError(f"the {root}'s XML has an unusable encoding") from None
    top = builder.top.first(root)
    if top is None:
        found = builder.top.children[0].tag[:40]
        raise ChainError(f"this is not a {root}'s XML: it starts with <{found}>")
    return top


class _Builder:
    """Expat's events to elements, within the limits."""

    def __init__(self, what: str) -> None:
        self.top = Element("", {})
        self._what = what
        self._open = [self.top]
        self._count = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS or len(self._open) > MAX_DEPTH:
            raise ChainError(
                f"the {self._what}'s XML has more than {MAX_ELEMENTS} elements, "
                f"or more than {MAX_DEPTH} levels"
            )
        element = Element(tag, attributes)
        self._open[-1].children.append(element)
        self._open.append(element)

    def end(self, _tag: str) -> None:
        self._open.pop()

    def text(self, text: str) -> None:
        self._open[-1].pieces.append(text)

    def declaration(self, _version: str, encoding: str | None, _standalone: int) -> None:
        # Called before expat looks for the encoding.
        if encoding is not None and encoding.lower() not in ENCODINGS:
            raise ChainError(f"the {self._what}'s XML has an unusable encoding")

    def doctype(self, *_: object) -> None:
        # No libvirt document has one, and entities could make a small document huge.
        raise ChainError(f"the {self._what}'s XML has a document type, which is not allowed")


def _boot_files(boot: Element) -> Iterator[Layer]:
    for role in ("kernel", "initrd", "dtb"):
        for element in boot.all(role):
            yield from _plain(element.text, role)
    for loader in boot.all("loader"):
        # A pflash loader without readonly='yes' is opened for writing (qemu_command.c).
        writable = loader.get("type") == "pflash" and loader.get("readonly") != "yes"
        yield from _plain(loader.text, "loader", writable, loader.get("format"))
    for nvram in boot.all("nvram"):
        source = nvram.first("source")
        stated = (source.get("file") or source.get("dev")) if source is not None else None
        path = stated or nvram.text
        yield from _plain(path, "nvram", True, nvram.get("format"))
        # libvirt copies it to where the variables are kept, when there is nothing yet.
        yield from _plain(nvram.get("template") or "", "nvram-template")


def _plain(
    path: str, role: str, writable: bool = False, image_format: str | None = None
) -> Iterator[Layer]:
    if path.startswith("/"):
        file = DomainFile(path, writable, False, role, role)
        yield Layer(file, image_format or "raw", False)


def _disk_layers(disk: Element, pools: PoolTargets) -> Iterator[Layer]:
    role = disk.get("device") or "disk"
    target_element, source = disk.first("target"), disk.first("source")
    target = (target_element.get("dev") if target_element is not None else None) or role
    protected = role == "cdrom" or any(disk.has(t) for t in ("readonly", "transient"))
    # 'requisite' may be missing on restore and migration alone, and a hook cannot tell
    # them from a cold start (qemuDomainCheckDiskStartupPolicy).
    optional = source is not None and source.get("startupPolicy") == "optional"
    driver = disk.first("driver")
    # Without a declared type libvirt takes raw (qemuDomainDeviceDiskDefPostParse).
    image_format = (driver.get("type") if driver is not None else None) or "raw"
    yield from _with_backing(
        disk, pools, DomainFile("", not protected, optional, role, target), image_format
    )
    mirror = disk.first("mirror")
    if mirror is not None:
        like = DomainFile("", True, False, "mirror", target)
        yield from _with_backing(mirror, pools, like, _declared_format(mirror))


def _with_backing(
    owner: Element, pools: PoolTargets, like: DomainFile, image_format: str | None
) -> Iterator[Layer]:
    """The image whose ``<source>`` is in *owner*, and the explicit layers under it.

    Not recursive: the depth is somebody else's choice.
    """
    element: Element | None = owner
    while element is not None:
        below = element.first("backingStore")
        path, kind = _source_path(element, pools)
        if path is not None:
            file = DomainFile(path, like.writable, like.optional, like.role, like.target, kind)
            yield Layer(file, image_format, below is not None)
        yield from _data_files(element, pools, like)
        like = DomainFile("", False, like.optional, "backing", like.target)
        image_format = _declared_format(below) if below is not None else None
        element = below


def _data_files(element: Element, pools: PoolTargets, like: DomainFile) -> Iterator[Layer]:
    """The ``<dataStore>`` of a qcow2 image (libvirt 10.10), in it or in its source."""
    source = element.first("source")
    for holder in (element, source):
        for store in holder.all("dataStore") if holder is not None else ():
            path, kind = _source_path(store, pools)
            if path is not None:
                file = DomainFile(path, like.writable, like.optional, "data", like.target, kind)
                yield Layer(file, "raw", True)


def _declared_format(element: Element) -> str | None:
    declared = element.first("format")
    return declared.get("type") if declared is not None else element.get("format")


def _source_path(element: Element, pools: PoolTargets) -> tuple[str | None, str]:
    """The local file or device of the ``<source>`` in *element*, and which of them it is said
    to be; no path for anything else.
    """
    source = element.first("source")
    if source is None:
        # libvirt before 1.0 wrote <mirror file='...'>, and still does beside <source>.
        path, kind = element.get("file"), ""
    elif source.get("pool") and source.get("volume"):
        pool = source.get("pool") or ""
        path = pools.volume_path(pool, source.get("volume") or "")
        kind = _VOLUME_KINDS.get(pools.pool_kind(pool) or "", "")
    else:
        path = source.get("file") or source.get("dev")
        kind = "file" if source.get("file") else "block"
    return (path, kind) if path is not None and path.startswith("/") else (None, "")


def _target_in(path: str, name: str) -> str | None:
    """The target of pool *name* in one of libvirt's files."""
    pool = _pool_in(path, name)
    target = pool.first("target") if pool is not None else None
    where = target.first("path") if target is not None else None
    return where.text if where is not None and where.text.startswith("/") else None


def _pool_in(path: str, name: str) -> Element | None:
    """Pool *name* in one of libvirt's files.

    The configuration holds ``<pool>``; the live state has it in ``<poolstate>``.
    """
    try:
        with open(path, "rb") as file:
            xml = file.read(_MAX_POOL_BYTES + 1)
    except (OSError, ValueError):
        return None
    if len(xml) > _MAX_POOL_BYTES:
        return None
    pool = _pool_element(xml)
    stated = pool.first("name") if pool is not None else None
    return pool if stated is not None and stated.text == name else None


def _pool_element(xml: bytes) -> Element | None:
    for root in ("pool", "poolstate"):
        try:
            top = parse(xml, root)
        except ChainError:
            continue
        return top if root == "pool" else top.first("pool")
    return None
