"""Who uses which published file: walks all images that anybody could reach.

From the documents of all domains and their snapshots, and from every file in every pool and
beside every image of a domain, down all backing chains. More strictly than
:mod:`ddfs.image.chain`, which the gate has for a domain that libvirt is about to check
anyway: here a file that is missing or cannot be read is an obstacle, since nobody knows
what stands under it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, Protocol

from ddfs.image import chain
from ddfs.image.domain import PoolTargets, layers_of_domain, parse
from ddfs.image.header import ChainError, references
from ddfs.image.openers import PASSING_SECONDS
from ddfs.image.paths import Mountpoint
from ddfs.keeping.judgement import Uses

# A header takes 0.1 ms: a look stays below half a minute.
MAX_IMAGES: Final = 200_000

# One reason is shown; a broken disk may have a thousand.
MAX_OBSTACLES: Final = 20

# Formats whose header names no other file.
_WITHOUT_CHAIN: Final = frozenset({"raw", "iso", "vpc", "vhdx", "vdi", "luks"})


class Inventory(Protocol):
    """What a host's libvirt knows."""

    @property
    def documents(self) -> Mapping[str, bytes]:
        """Domain documents by whom they are of: ``domain vm1``, ``snapshot a of vm1``."""

    @property
    def directories(self) -> Mapping[str, str]:
        """Directories with images in them, and what they are of: ``pool default``."""

    @property
    def images(self) -> Mapping[str, str]:
        """Other local images, and what they are of."""

    @property
    def obstacles(self) -> Sequence[str]:
        """What libvirt could not say."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The template pool: its mount, and the content of each file name in it."""

    mount: Mountpoint
    templates_dir: str
    contents: Mapping[str, str]


@dataclass
class _Found:
    of_content: dict[str, list[str]] = field(default_factory=dict)
    of_path: dict[str, list[str]] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)


def find_uses(
    inventory: Inventory, pool: Pool, stored: Sequence[str], pools: PoolTargets | None = None
) -> Uses:
    """Who uses the published files at the paths *stored*. Blocks; never touches the mount."""
    walk, pools = _Walk(pool, stored), pools or PoolTargets()
    walk.obstacles(inventory.obstacles)
    for owner, xml in inventory.documents.items():
        try:
            layers = layers_of_domain(xml, pools)
            walk.obstacles([f"{owner}: {lost} is not known" for lost in _lost_volumes(xml, pools)])
        except ChainError as error:
            walk.obstacles([f"{owner}: {error}"])
            continue
        for layer in layers:
            walk.add(layer.file.path, layer.format, owner, layer.file.optional)
    for path, owner in inventory.images.items():
        walk.add_listed(path, owner)
    for directory, owner in inventory.directories.items():
        walk.add_directory(directory, owner)
    for path in stored:
        walk.add_beside(path)
    walk.run()
    walk.look_at_processes()
    found = walk.found
    return Uses(found.of_content, found.of_path, tuple(found.obstacles[:MAX_OBSTACLES]))


class _Walk:
    """One look. What is to be looked at grows while it is looked at."""

    def __init__(self, pool: Pool, stored: Sequence[str]) -> None:
        self.found = _Found()
        self._pool = pool
        self._stored: dict[tuple[int, int], str] = {}
        # Volumes of pools: devices, by their numbers.
        self._stored_devices: dict[int, str] = {}
        # By what their paths, which may be links (LVM's), lead to.
        self._stored_paths = {pool.mount.resolve(path): path for path in stored}
        # As model.Template.published_name has it.
        self._named = {each.rpartition(":")[2][:12] for each in pool.contents.values()}
        # In order: a chain counts for who named it first, and domains come first.
        self._images: deque[tuple[str, str | None, str, bool]] = deque()
        self._directories: list[tuple[str, str]] = []
        self._seen: set[tuple[str, str | None]] = set()
        self._seen_directories: set[str] = set()
        self._count = 0
        for path in stored:
            try:
                status = os.lstat(path)
                if stat.S_ISLNK(status.st_mode):
                    status = os.stat(path)
            except OSError:
                continue
            if stat.S_ISBLK(status.st_mode):
                self._stored_devices[status.st_rdev] = path
            else:
                self._stored[status.st_dev, status.st_ino] = path

    def obstacles(self, texts: Sequence[str]) -> None:
        """Something could not be looked at."""
        if len(self.found.obstacles) < MAX_OBSTACLES:
            self.found.obstacles += texts

    def add(self, path: str, image_format: str | None, owner: str, may_miss: bool = False) -> None:
        """An image that *owner* names."""
        self._images.append((path, image_format, owner, may_miss))

    def add_listed(self, path: str, owner: str) -> None:
        """An image that a pool has. A published one is not used by being there."""
        try:
            status = os.stat(self._pool.mount.resolve(path))
        except OSError:
            status = None
        is_device = status is not None and stat.S_ISBLK(status.st_mode)
        if status is None or not is_device or status.st_rdev not in self._stored_devices:
            self.add(path, None, owner)

    def add_beside(self, stored: str) -> None:
        """What lies where a published file does; devices all lie in one place."""
        if stored not in self._stored_devices.values():
            self.add_directory(os.path.dirname(stored), "")

    def add_directory(self, path: str, owner: str) -> None:
        """A directory whose files are images. With an empty *owner* each speaks for itself."""
        real = self._pool.mount.resolve(path)
        if not self._pool.mount.holds(real) and real not in self._seen_directories:
            self._seen_directories.add(real)
            self._directories.append((real, owner))

    def run(self) -> None:
        """Look at everything, until there is nothing new."""
        while self._images or self._directories:
            while self._images:
                self._look(*self._images.popleft())
            if self._directories:
                self._list(*self._directories.pop())

    def _list(self, directory: str, owner: str) -> None:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if self._may_be_image(entry):
                        self.add(entry.path, None, entry.path, may_miss=True)
        except (FileNotFoundError, NotADirectoryError):
            # A pool's or a domain's directory that is not there may be one that is not
            # mounted; what stands in it is then unknown.
            self.obstacles([f"{owner or 'a domain'}: {directory} is not there"])
        except OSError as error:
            self.obstacles([f"{directory}: {error.strerror}"])

    def _may_be_image(self, entry: os.DirEntry[str]) -> bool:
        if entry.is_symlink():
            return True
        if not entry.is_file(follow_symlinks=False):
            return False
        # Neither a published file itself nor a hard link to it needs the published name.
        status = entry.stat(follow_symlinks=False)
        return (status.st_dev, status.st_ino) not in self._stored

    def _look(self, path: str, image_format: str | None, owner: str, may_miss: bool) -> None:
        mount = self._pool.mount
        real = mount.resolve(path)
        if mount.holds(real):
            directory, _, name = real.rpartition("/")
            content_id = self._pool.contents.get(name)
            if directory == self._pool.templates_dir and content_id is not None:
                self._note(self.found.of_content, content_id, owner)
            elif directory == self._pool.templates_dir:
                self._note_removed(name, owner)
            return
        if real in self._stored_paths:
            self._note(self.found.of_path, self._stored_paths[real], owner)
        if (real, image_format) in self._seen:
            return
        self._seen.add((real, image_format))
        self._count += 1
        if self._count > MAX_IMAGES:
            if self._count == MAX_IMAGES + 1:
                self.obstacles([f"there are more than {MAX_IMAGES} images to look at"])
            return
        try:
            self._open(real, path, image_format, owner)
        except FileNotFoundError:
            if not may_miss and image_format not in _WITHOUT_CHAIN:
                self.obstacles([f"{owner}: {path} is not there"])
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.obstacles([f"{owner}: {path}: {reason}" if owner != path else f"{path}: {reason}"])

    def _open(self, real: str, path: str, image_format: str | None, owner: str) -> None:
        """Note whose file it is, and look into its header; raises ``OSError``, ``ChainError``."""
        status = os.lstat(real)
        ours = self._stored.get((status.st_dev, status.st_ino))
        if ours is not None:
            # By another name: a hard link.
            self._note(self.found.of_path, ours, owner)
            return
        if stat.S_ISBLK(status.st_mode) and status.st_rdev in self._stored_devices:
            self._note(self.found.of_path, self._stored_devices[status.st_rdev], owner)
            return
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            return
        if stat.S_ISREG(status.st_mode):
            self.add_directory(os.path.dirname(real), owner)
        if image_format in _WITHOUT_CHAIN:
            return
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(real, flags)
        try:
            named = references(lambda at, size: os.pread(descriptor, size, at), image_format)
        finally:
            os.close(descriptor)
        for image in chain.images_below(path, named):
            self.add(image.path, image.format, owner)

    def _note_removed(self, name: str, owner: str) -> None:
        """*owner* stands on a name of the pool that was removed: each file that may have been its
        content, and is nobody's now, has to stay for it.
        """
        stem, _, suffix = name.rpartition(".")
        for path in self._stored_paths.values():
            family, _, rest = os.path.basename(path).rpartition("@")
            digest, _, format_suffix = rest.rpartition(".")
            if (family, format_suffix) == (
                stem.partition("@")[0],
                suffix,
            ) and digest not in self._named:
                self._note(self.found.of_path, path, owner)

    def _note(self, where: dict[str, list[str]], key: str, owner: str) -> None:
        users = where.setdefault(key, [])
        if owner not in users:
            users.append(owner)

    def look_at_processes(self) -> None:
        """Whoever has a stored file open now, a loop device included; not libvirt's refresh of a
        pool, which is over when it is looked again.
        """
        opened = self._opened_now()
        if opened:
            time.sleep(PASSING_SECONDS)
            opened = self._opened_now()
        for path, owner in opened:
            self._note(self.found.of_path, path, owner)

    def _opened_now(self) -> list[tuple[str, str]]:
        """Each with who has it open."""
        found = []
        inodes = {inode for _, inode in self._stored}
        for owner, status in _open_files(inodes, devices=bool(self._stored_devices)):
            path = self._stored.get((status.st_dev, status.st_ino))
            if stat.S_ISBLK(status.st_mode):
                path = self._stored_devices.get(status.st_rdev)
            if path is not None:
                found.append((path, owner))
        return found


def _open_files(inodes: Set[int], *, devices: bool) -> Iterator[tuple[str, os.stat_result]]:
    """Who but this process has a file open whose inode number is one of *inodes*, or, with
    *devices*, one in /dev.

    The number is read from fdinfo (proc(5)), which asks no file system: one that hangs, or
    our own mount, is only asked about a file that has such a number.
    """
    me = os.getpid()
    for process in os.scandir("/proc"):
        if not process.name.isdigit() or int(process.name) == me:
            continue
        try:
            descriptors = list(os.scandir(f"{process.path}/fdinfo"))
        except OSError:
            continue
        for descriptor in descriptors:
            # One that is closed meanwhile must not hide the others of that process.
            with contextlib.suppress(OSError):
                name = f"{process.path}/fd/{descriptor.name}"
                # A QEMU has a /dev of its own, with inodes of its own.
                is_device = devices and os.readlink(name).startswith("/dev/")
                if is_device or _inode(descriptor.path) in inodes:
                    yield f"process {process.name}", os.stat(name)


def _inode(fdinfo: str) -> int:
    with open(fdinfo, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("ino:"):
                return int(line[4:])
    return -1


def _lost_volumes(xml: bytes, pools: PoolTargets) -> Iterator[str]:
    """The volumes of a domain that lie in a pool that nobody knows."""
    for devices in parse(xml, "domain").all("devices"):
        for disk in devices.all("disk"):
            source = disk.first("source")
            if source is None:
                continue
            pool, volume = source.get("pool"), source.get("volume")
            if pool and volume and pools.volume_path(pool, volume) is None:
                yield f"{volume} in pool {pool}"
