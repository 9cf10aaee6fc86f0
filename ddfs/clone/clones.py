"""Disks for domains, made from templates: linked overlays, and full copies.

A linked overlay names the template by its path in the template pool. That path outlives the
daemon (its symlink stands under the mountpoint as well), it tells the gate what the domain
needs, and it stays right when the published file is fetched again.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from ddfs import errors
from ddfs.clone.images import SECTOR, Images, Undo
from ddfs.image import chain, disk, domain
from ddfs.image.openers import processes_with_open
from ddfs.model import MAX_SIZE, ImageFormat, PublishedFile, RbdPool, Template, size_text
from ddfs.templates import Templates

T = TypeVar("T")

DEFAULT_POOL: Final = "default"

# A file's name on Linux (NAME_MAX).
_MAX_NAME_BYTES: Final = 255

# qemu-img makes these larger; the others have their size in more than one place.
_GROWING: Final = (ImageFormat.QCOW2, ImageFormat.RAW)

# Copies of whole images: hours.
_copying = trio.CapacityLimiter(2)

# All that is short, with what nobody can break off; and a look at every domain's chains.
_limiter = trio.CapacityLimiter(2)


class Pools(Protocol):
    """libvirt's storage pools whose volumes are files. All raise :class:`errors.LibvirtError`."""

    async def directory(self, pool: str) -> Path:
        """Where the volumes of an active pool lie."""

    async def capacity(self, pool: str, volume: str) -> int | None:
        """The size of the disk in a volume, in bytes; None where there is no such volume."""

    async def refresh(self, pool: str) -> None:
        """Let libvirt see what is new."""


class Domains(Protocol):
    """libvirt's domains. Both raise :class:`errors.LibvirtError`."""

    async def all_xml(self) -> Mapping[str, bytes]:
        """The XML of all, by name."""

    async def saved(self) -> set[str]:
        """Those that wait with their memory on disk (managed save)."""


@dataclass(frozen=True, slots=True)
class CloneOrder:
    """A disk called *volume* in *pool*, from *template*.

    ``size`` in bytes, None: the template's, or that of the disk that it replaces if that is
    larger. ``full``: a copy that needs the template no more. ``replace``: in place of the
    volume of that name, if there is one. A file is given *mark*, see :meth:`disk.NewDisk.mark`.
    """

    template: str
    volume: str
    pool: str = DEFAULT_POOL
    size: int | None = None
    full: bool = False
    replace: bool = False
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Clone:
    """What was made; ``how`` is ``overlay``, ``reflink`` or ``copy``.

    In an rbd pool ``path`` is that of an image, ``POOL/IMAGE``, as QEMU and libvirt write it.
    """

    path: Path
    format: ImageFormat
    capacity: int
    how: str
    replaced: bool


class Clones:
    """Makes disks from the templates of this host."""

    def __init__(
        self,
        templates: Templates,
        templates_dir: Path,
        pools: Pools,
        domains: Domains,
        images: Images,
    ) -> None:
        self._templates = templates
        self._directory = templates_dir
        self._mount = str(templates_dir.parent)
        self._pools = pools
        self._domains = domains
        self._images = images

    async def make(self, order: CloneOrder, undo: Undo) -> Clone:
        """Make a disk; it is complete, and libvirt knows it, when this returns.

        In a pool of type rbd *undo* is told of it, and takes it back.

        Raises :class:`errors.NotHereYetError` for a template that has to be fetched first,
        :class:`errors.NameTakenError`, :class:`errors.TemplateInUseError` for a disk in use
        that it should replace, :class:`errors.StorageFullError`. After any error or a
        cancellation the old disk is there as it was, and nothing else.
        """
        template = self._templates.newest(order.template)
        _validate_volume(order.volume)
        rbd_pool = await self._images.find(order.pool)
        if rbd_pool is not None:
            return await self._make_image(template, order, rbd_pool, undo)
        directory = await self._pools.directory(order.pool)
        path = directory / order.volume
        if chain.Mountpoint(self._mount).holds(str(directory)):
            raise errors.InvalidValueError(
                f"pool {order.pool} is the template pool itself; choose another with --pool"
            )
        source, least = await self._source(template, order)
        replaced = await trio.to_thread.run_sync(_is_there, path, order.replace, limiter=_limiter)
        size = await self._size(template, order, least, replaced)
        if replaced:
            await self._refuse_users(path)
        new_size = None if size == least else size
        # A use, if it is here: nobody deletes it before the new disk can be seen.
        await self._templates.confirm_published(template)
        make = functools.partial(self._make, template, source, path, size, new_size)
        how = await make(replaced=replaced, mark=order.mark)
        await self._pools.refresh(order.pool)
        image_format = template.format if order.full else ImageFormat.QCOW2
        return Clone(path, image_format, size, how, replaced)

    async def _source(
        self, template: Template, order: CloneOrder
    ) -> tuple[PublishedFile | None, int]:
        """The published file, where it is to be copied, and the size of the disk in it."""
        stated = _stated_size(template)
        if stated is not None and not order.full:
            return None, stated
        is_here = await self._templates.confirm_published(template)
        published = self._templates.published(template)
        if not is_here or published is None:
            why = "a full copy" if order.full else "its size, which nothing vouches for yet"
            raise errors.NotHereYetError(
                f"{template.file_name} is not here, and is needed for {why}; run: "
                f"ddfs prefetch {template.exact_name}"
            )
        if stated is None and template.format.qemu_name == "raw":
            stated = published.size
        elif stated is None:
            stated = await _run(disk.virtual_size, Path(published.path), template.format)
        return (published if order.full else None), stated

    async def _size(self, template: Template, order: CloneOrder, least: int, replaced: bool) -> int:
        """The new disk's, in bytes; a multiple of 512 unless it is a copy as it is."""
        if order.size is None:
            old = await self._pools.capacity(order.pool, order.volume) if replaced else None
            wanted = max(least, min(old or 0, MAX_SIZE))
        else:
            wanted = order.size
        _refuse_size(template, wanted, least)
        if wanted == least and order.full:
            return wanted
        if order.full and template.format not in _GROWING:
            raise errors.InvalidValueError(
                f"a full copy of {template.file_name} stays as large as that is, "
                f"{size_text(least)}; make an overlay, or leave the size out"
            )
        return -(-wanted // SECTOR) * SECTOR

    async def _make_image(
        self, template: Template, order: CloneOrder, pool: RbdPool, undo: Undo
    ) -> Clone:
        """A raw image in Ceph: no overlay there could have a file of this host under it."""
        if not order.full:
            raise errors.InvalidValueError(
                f"pool {order.pool} is of type rbd, where no disk can stand on a file of this "
                "host; add --full for a copy"
            )
        if order.replace or "@" in order.volume:
            what = "a name with @" if "@" in order.volume else "--replace"
            raise errors.InvalidValueError(
                f"{what} cannot be used in pool {order.pool}, which is of type rbd; choose another "
                "name for the volume"
            )
        source, least = await self._source(template, order)
        if source is None:
            raise RuntimeError("a full copy has a source")
        wanted = least if order.size is None else order.size
        _refuse_size(template, wanted, least)
        size = -(-wanted // SECTOR) * SECTOR
        place = order.pool, pool
        try:
            await self._images.copy(source, template.format, place, order.volume, size, undo)
            await undo.keep()
        except BaseException:
            await undo.take_back()
            raise
        await self._pools.refresh(order.pool)
        return Clone(Path(pool.name, order.volume), ImageFormat.RAW, size, "copy", False)

    async def _refuse_users(self, path: Path) -> None:
        users = await self._users_of(path)
        if users:
            raise errors.TemplateInUseError(
                f"{path} is not replaced: {'; '.join(sorted(users)[:5])}"
            )

    async def _users_of(self, path: Path) -> set[str]:
        xml, saved = await self._domains.all_xml(), await self._domains.saved()
        mount = self._mount

        def look() -> set[str]:
            seen_from = chain.Mountpoint(mount)
            found = _domain_users(xml, saved, path, seen_from)
            opened = processes_with_open({str(path), os.path.realpath(path)})
            found |= {f"{process} has it open" for process in opened}
            # Those of no domain; elsewhere than beside it nobody knows where to look.
            return found | {
                f"{name} stands on it" for name in chain.images_on(str(path), seen_from)
            }

        return await trio.to_thread.run_sync(look, limiter=_limiter)

    async def _make(
        self,
        template: Template,
        source: PublishedFile | None,
        path: Path,
        size: int,
        new_size: int | None,
        *,
        replaced: bool,
        mark: str | None,
    ) -> str:
        new = await _run(disk.NewDisk, path.parent)
        try:
            if mark is not None:
                await _run(new.mark, mark)
            how = "overlay"
            if source is None:
                backing = self._directory / template.file_name
                await _run(new.overlay, backing, template.format, size)
            else:
                check, path_of_it = trio.from_thread.check_cancelled, Path(source.path)
                volume_bytes = source.size if source.is_volume else None
                copy = functools.partial(new.copy, path_of_it, check, volume_bytes)
                is_shared = await trio.to_thread.run_sync(copy, limiter=_copying)
                how = "reflink" if is_shared else "copy"
                if new_size is not None:
                    await _run(new.grow, template.format, new_size)
            if replaced:
                await _run(new.take_after, path)
                # It may have been started while the copy was made.
                await self._refuse_users(path)
            with trio.CancelScope(shield=True):
                await _run(functools.partial(new.publish, path, replace=replaced))
            return how
        finally:
            with trio.CancelScope(shield=True):
                await _run(new.close)


async def _run(function: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(function, *arguments, limiter=_limiter)


def _stated_size(template: Template) -> int | None:
    """The size of the disk in *template*, where something verified says it."""
    if not template.head_is_verified:
        return None
    if template.format.qemu_name == "raw":
        return template.size if template.size_is_known else None
    return template.virtual_size


def _refuse_size(template: Template, wanted: int, least: int) -> None:
    if not least <= wanted <= MAX_SIZE:
        raise errors.InvalidValueError(
            f"a disk of {size_text(wanted)} cannot be made from {template.file_name}, whose disk "
            f"has {size_text(least)}: give that or more, or leave the size out"
        )


def _validate_volume(name: str) -> None:
    is_name = name and name not in (".", "..") and "/" not in name and name.isprintable()
    is_ours = name.startswith(disk.TEMPORARY_PREFIX)
    if not is_name or is_ours or len(os.fsencode(name)) > _MAX_NAME_BYTES:
        raise errors.InvalidValueError(
            f"{name[:140]!r} cannot be a volume's name: it is that of a file, in up to "
            f"{_MAX_NAME_BYTES} bytes and without / and control characters"
        )


def _is_there(path: Path, may_be: bool) -> bool:
    """Whether the volume is there; raises for what is in the way."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise errors.StorageError(f"{path}: {error.strerror}") from error
    if not may_be:
        raise errors.NameTakenError(
            f"{path} is there already; choose another name, or make it anew with --replace"
        )
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o222:
        raise errors.NameTakenError(f"{path} is no disk of a domain, and is not replaced")
    _refuse_snapshots(path)
    return True


def _refuse_snapshots(path: Path) -> None:
    """An internal snapshot (``nb_snapshots`` of the qcow2 header, at 60) would be lost, and libvirt
    would go on listing it.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise errors.StorageError(f"{path}: {error.strerror}") from error
    count = int.from_bytes(head[60:64], "big") if head.startswith(b"QFI\xfb") else 0
    if count:
        raise errors.TemplateInUseError(
            f"{path} is not replaced: it has {count} snapshots inside; delete them first, with "
            "virsh snapshot-delete"
        )


def _domain_users(
    domains: Mapping[str, bytes], saved: set[str], path: Path, mount: chain.Mountpoint
) -> set[str]:
    """Why domains stand in the way of replacing *path*; a domain that is off does not."""
    users = set()
    wanted = mount.resolve(str(path))
    pools = domain.PoolTargets()
    for name, xml in domains.items():
        try:
            runs = domain.parse(xml, "domain").get("id") is not None
            files = chain.domain_files(xml, mount, pools)
        except chain.ChainError as error:
            users.add(f"domain {name} cannot be looked into: {error}")
            continue
        roles = {file.role for file in files if mount.resolve(file.path) == wanted}
        if roles and runs:
            users.add(f"domain {name} runs on it; shut that down first")
        elif roles & {"backing", "data"}:
            users.add(f"another disk of domain {name} stands on it")
        elif roles and name in saved:
            users.add(f"domain {name} was saved and goes on with it (virsh managedsave-remove)")
    return users
