"""Which files a domain needs, down to the last backing file.

Two sources together: the domain's XML (:mod:`ddfs.image.domain`) and the headers of the
images that it names (:mod:`ddfs.image.header`). Neither libvirt nor QEMU is asked, and
nothing under the mountpoint is ever touched (:mod:`ddfs.image.paths`): a template has no
backing file, so a chain ends there.

Standard library only: the hook uses it. Blocking: images are opened and read, on local
disks for some 0.1 ms each; the daemon calls it in a thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from ddfs.image.domain import (
    POOL_DIRECTORIES,
    DomainFile,
    PoolTargets,
    files_of_domain,
    layers_of_domain,
)
from ddfs.image.header import ChainError, References, references
from ddfs.image.paths import Mountpoint

__all__ = [
    "POOL_DIRECTORIES",
    "ChainError",
    "DomainFile",
    "Image",
    "Mountpoint",
    "PoolTargets",
    "SealedFile",
    "backing_chain",
    "chain_problems",
    "domain_files",
    "files_of_domain",
    "images_below",
    "needed_files",
    "sealed_files",
    "templates_under",
]

# QEMU_DOMAIN_STORAGE_SOURCE_CHAIN_MAX_DEPTH in qemu_domain.c: libvirt starts no deeper one.
MAX_DEPTH: Final = 200

# A json: name nests one object for each driver in QEMU's stack; real ones have two.
_MAX_JSON_DEPTH: Final = 16

_ANYBODY_WRITES: Final = 0o222


class Image(NamedTuple):
    """One image of a chain: ``path`` as named by the one above, ``format`` as declared
    there (None: not declared), and whether it is the ``data`` file of a qcow2 image.
    """

    path: str
    format: str | None
    is_data: bool = False


class SealedFile(NamedTuple):
    """A file that nobody may write to, its ``path`` without symlinks, and which it is: of a
    block device ``device`` is its own number and ``inode`` 0.
    """

    file: DomainFile
    device: int
    inode: int


def backing_chain(path: str, declared_format: str | None, *, under: str) -> tuple[Image, ...]:
    """The images that *path* stands on, itself first, each data file behind its owner.

    *under* is the mountpoint; an image under it is the last one and is not opened. So is
    one that is missing, unreadable or no regular file or block device, one with a format
    that names no others, and one whose backing file is not local.

    Raises :class:`ChainError` for a loop, a chain of more than ``MAX_DEPTH``, and a header
    that makes no sense.
    """
    return tuple(_walk(Image(path, declared_format), Mountpoint(under)))


def domain_files(xml: bytes, mount: Mountpoint, pools: PoolTargets) -> tuple[DomainFile, ...]:
    """Every local file that the domain uses, with the images under its disks.

    What lies under the mountpoint, by whatever name, has a path that starts with
    :attr:`Mountpoint.path`; all others have the path as named. A chain that cannot be made
    out counts as far as it can: libvirt refuses such a domain with a message of its own,
    and until then it is none of ours. Raises :class:`ChainError` for the XML alone.
    """
    found: dict[DomainFile, None] = {}
    for layer in layers_of_domain(xml, pools):
        images = [Image(layer.file.path, layer.format)]
        if not layer.is_explicit_end:
            images = _walk_as_far_as_possible(images[0], mount)
        for index, image in enumerate(images):
            found[_file_of(image, index, layer.file, mount)] = None
    return tuple(found)


def sealed_files(files: Iterable[DomainFile], mount: Mountpoint) -> tuple[SealedFile, ...]:
    """Those of *files* that nobody may write, and that the domain would write to, or takes for
    files though they are devices.

    A published template is such a file (mode 0444) or such a device, under whatever name; so is
    much else, and only the daemon knows which. What lies under the mountpoint is none.
    """
    wanted = (file for file in files if file.writable or file.kind == "file")
    found = (_sealed(file, mount) for file in wanted)
    return tuple(file for file in found if file is not None)


def _sealed(file: DomainFile, mount: Mountpoint) -> SealedFile | None:
    path = mount.resolve(file.path)
    if mount.holds(path):
        return None
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISBLK(status.st_mode) and _is_read_only(status.st_rdev):
        return SealedFile(file._replace(path=path), status.st_rdev, 0)
    if not file.writable or not stat.S_ISREG(status.st_mode) or status.st_mode & _ANYBODY_WRITES:
        return None
    return SealedFile(file._replace(path=path), status.st_dev, status.st_ino)


def _is_read_only(device: int) -> bool:
    """Whether the kernel lets nobody write to a block device (blockdev --setro)."""
    try:
        with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/ro", "rb") as file:
            return file.read(1) == b"1"
    except OSError:
        return False


def chain_problems(xml: bytes, mount: Mountpoint, pools: PoolTargets) -> tuple[str, ...]:
    """Why chains of the domain cannot be made out, a line for each; libvirt refuses those.

    Raises :class:`ChainError` for the XML alone.
    """
    problems = []
    for layer in layers_of_domain(xml, pools):
        if not layer.is_explicit_end:
            try:
                list(_walk(Image(layer.file.path, layer.format), mount))
            except ChainError as error:
                problems.append(f"{layer.file.target}: {error}")
    return tuple(problems)


def needed_files(xml: bytes, mountpoint: str, pools: PoolTargets) -> tuple[DomainFile, ...]:
    """The files of :func:`domain_files` that lie under *mountpoint*."""
    mount = Mountpoint(mountpoint)
    return tuple(file for file in domain_files(xml, mount, pools) if mount.holds(file.path))


def templates_under(files: Iterable[DomainFile], templates_dir: str) -> tuple[DomainFile, ...]:
    """Those of *files* that are entries of *templates_dir*, the template pool."""
    directory = os.path.normpath(templates_dir)
    return tuple(file for file in files if os.path.dirname(file.path) == directory)


def _file_of(image: Image, index: int, top: DomainFile, mount: Mountpoint) -> DomainFile:
    """Image number *index* of the chain under *top*."""
    resolved = mount.resolve(image.path)
    path = resolved if mount.holds(resolved) else image.path
    if index == 0:
        return top._replace(path=path)
    if image.is_data:
        # Guest writes go to the data file of the top image, which comes right behind it.
        is_written = top.writable and index == 1
        return top._replace(path=path, role="data", writable=is_written, kind="")
    # libvirt asks itself whether it is a device (virStorageSourceNewFromBacking).
    return top._replace(path=path, role="backing", writable=False, kind="")


def _walk_as_far_as_possible(top: Image, mount: Mountpoint) -> list[Image]:
    images: list[Image] = []
    try:
        for image in _walk(top, mount):
            images.append(image)  # noqa: PERF402  what came before an error counts
    except ChainError:
        pass
    return images


def _walk(top: Image, mount: Mountpoint) -> Iterator[Image]:
    """The chain from *top* down; see :func:`backing_chain`."""
    seen: set[tuple[int, int]] = set()
    image: Image | None = top
    for _ in range(MAX_DEPTH):
        if image is None:
            return
        yield image
        found = _look(image, mount, seen)
        if found.data is not None:
            yield Image(_local_name(found.data, image.path)[0], "raw", is_data=True)
        if found.backing is None:
            return
        path, stated = _local_name(found.backing, image.path)
        image = Image(path, stated or found.backing_format) if path else None
    raise ChainError(f"{_shown(top.path)} stands on more than {MAX_DEPTH} images")


def images_on(path: str, mount: Mountpoint) -> tuple[str, ...]:
    """The names of the images beside *path*, in its directory, that stand on it, in order.

    Of a chain that cannot be made out, what is made out counts. Raises OSError for a directory
    that cannot be listed.
    """
    wanted = mount.resolve(path)
    directory = os.path.dirname(path)
    others = (name for name in sorted(os.listdir(directory)) if name != os.path.basename(path))
    return tuple(name for name in others if _leads_to(wanted, os.path.join(directory, name), mount))


def _leads_to(wanted: str, path: str, mount: Mountpoint) -> bool:
    below = _walk_as_far_as_possible(Image(path, None), mount)[1:]
    return any(mount.resolve(image.path) == wanted for image in below)


def images_below(path: str, named: References) -> tuple[Image, ...]:
    """The local images that the header of the image at *path* names, its data file first.

    Raises :class:`ChainError` for a name that makes no sense.
    """
    found = []
    if named.data is not None:
        found.append(Image(_local_name(named.data, path)[0], "raw", is_data=True))
    if named.backing is not None:
        below, stated = _local_name(named.backing, path)
        found.append(Image(below, stated or named.backing_format))
    return tuple(image for image in found if image.path)


def _look(image: Image, mount: Mountpoint, seen: set[tuple[int, int]]) -> References:
    """What the header of *image* names; nothing where there is nothing to look into."""
    nothing = References(image.format or "raw")
    path = mount.resolve(image.path)
    if mount.holds(path):
        return nothing
    descriptor = _open_image(path)
    if descriptor is None:
        return nothing
    try:
        status = os.fstat(descriptor)
        if not _is_image(status.st_mode):
            return nothing
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            raise ChainError(f"{_shown(image.path)} is its own backing file, over some others")
        seen.add(identity)
        return _references_of(descriptor, image)
    except OSError:
        return nothing
    finally:
        os.close(descriptor)


def _references_of(descriptor: int, image: Image) -> References:
    try:
        return references(lambda at, size: os.pread(descriptor, size, at), image.format)
    except ChainError as error:
        raise ChainError(f"{_shown(image.path)}: {error}") from None


def _open_image(path: str) -> int | None:
    """A descriptor of *path*, whose directories are resolved already, or None.

    Looked at before it is opened, because opening some devices does something; and never
    through a symlink, which could lead into the mount by now.
    """
    try:
        if not _is_image(os.lstat(path).st_mode):
            return None
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags)
    except (OSError, ValueError):  # ValueError: a NUL byte in the name
        return None


def _is_image(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _local_name(name: str, parent: str) -> tuple[str, str | None]:
    """The path and the stated format of what an image at *parent* calls *name*.

    The path is empty when *name* is no local file. Relative names start at the parent's
    directory, of the path as named (virStorageSourceNewFromBackingRelative); those with a
    protocol at the working directory of QEMU, which is the root.
    """
    if name.startswith("json:"):
        path, stated = _json_name(name.removeprefix("json:"))
        return (os.path.join("/", path) if path else ""), stated
    if name.startswith("file:"):
        return os.path.join("/", name.removeprefix("file:")), None
    protocol, colon, _ = name.partition(":")
    if colon and "/" not in protocol:
        return "", None
    return os.path.join(os.path.dirname(parent), name), None


def _json_name(text: str) -> tuple[str, str | None]:
    """File name and format in a ``json:`` pseudo-protocol name, nested or dotted.

    docs/system/qemu-block-drivers and qobject/block-qdict.c: ``{"file": {"filename": F}}``
    and ``{"file.filename": F}`` mean the same.
    """
    import json  # takes some milliseconds, and hardly a chain needs it

    try:
        flat = _flatten(json.loads(text))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ChainError) else "it is no JSON"
        raise ChainError(f"the json: name of a backing file is unusable: {reason}") from None
    stated: str | None = None
    prefix = ""
    for _ in range(_MAX_JSON_DEPTH):
        driver = flat.get(f"{prefix}driver")
        if driver in ("file", "host_device") or (driver is None and f"{prefix}filename" in flat):
            return flat.get(f"{prefix}filename", ""), stated
        # Filters stand above a format as well as under it: the first format decides.
        if driver in ("raw", "qcow2", "qcow", "vmdk") and stated is None:
            stated = driver
        prefix += "file."
    return "", None


def _flatten(value: object) -> dict[str, str]:
    """The strings in nested objects, under dotted names."""
    if not isinstance(value, dict):
        raise ChainError("it is no JSON object")
    flat: dict[str, str] = {}
    todo: list[tuple[str, object, int]] = [("", value, 0)]
    while todo:
        name, item, depth = todo.pop()
        if isinstance(item, dict):
            if depth > _MAX_JSON_DEPTH:
                raise ChainError("it is nested too deeply")
            prefix = f"{name}." if name else ""
            todo += [(f"{prefix}{key}", below, depth + 1) for key, below in item.items()]
        elif isinstance(item, str):
            flat[name] = item
    return flat


def _shown(path: str) -> str:
    """*path* on one line."""
    return path if path.isprintable() else repr(path)
