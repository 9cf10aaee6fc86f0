"""From the settings to the primary storages of this host."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.config import PrimarySettings, Settings
from ddfs.image.domain import PoolTargets
from ddfs.primary import kernel
from ddfs.primary.directory import DirectoryStorage
from ddfs.primary.shared import SharedDirectoryStorage
from ddfs.primary.volumes import VolumeStorage
from ddfs.virt.volume_pool import VolumePool

log = logging.getLogger(__name__)

LIBVIRT_POOLS: Final = Path("/etc/libvirt/storage")
KEPT_POOLS: Final = "pools"

# Pools whose volumes are files of a directory.
_OF_FILES: Final = frozenset({"dir", "fs", "netfs"})
# Pools that make volumes and take in their bytes (virStorageBackend tables): those that ran in
# our tests, and those written against libvirt's documents alone.
_TESTED: Final = frozenset({"disk"})
_UNTESTED: Final = frozenset({"logical", "zfs"})


def storages_of(settings: Settings) -> list[DirectoryStorage]:
    """All of them, the default first; not prepared yet.

    Raises :class:`errors.ConfigError`, and :class:`errors.StorageError` where the staging of a
    pool's volumes cannot be made.
    """
    return [_storage(settings, name, path) for name, path in paths_of(settings).items()]


def paths_of(settings: Settings) -> dict[str, Path]:
    """The directories of the primary storages, or their stagings; the default first."""
    paths: dict[str, Path] = {}
    pools: dict[str, str] = {}
    for name, chosen in settings.primary.items():
        path = _path(settings, name, chosen)
        if path == settings.mountpoint or settings.mountpoint in path.parents:
            raise errors.ConfigError(f"primary.{name}: {path} lies in the mountpoint itself")
        for other, taken in paths.items():
            if os.path.realpath(taken) == os.path.realpath(path):
                raise errors.ConfigError(f"primary.{name}: {path} is primary.{other} already")
        if chosen.pool is not None and pools.setdefault(chosen.pool, name) != name:
            raise errors.ConfigError(
                f"primary.{name}: pool {chosen.pool} is primary.{pools[chosen.pool]} already"
            )
        paths[name] = path
    return paths


def _path(settings: Settings, name: str, chosen: PrimarySettings) -> Path:
    """A libvirt pool's is read from its XML file, so that libvirtd may be down."""
    if chosen.pool is None:
        assert chosen.path is not None
        return chosen.path
    if _has_volumes(name, chosen):
        return chosen.staging or settings.state_dir / "staging" / name
    target = PoolTargets().pool_target(chosen.pool)
    if target is None:
        raise errors.ConfigError(
            f"primary.{name}.pool: libvirt's pool {chosen.pool!r} has no directory; give it a "
            "target path"
        )
    return Path(target)


def _has_volumes(name: str, chosen: PrimarySettings) -> bool:
    """Whether the pool's volumes are devices; raises :class:`errors.ConfigError` for what cannot
    be, or is not used unless the operator says so.
    """
    pool = f"primary.{name}.pool: {chosen.pool!r}"
    kind = PoolTargets().pool_kind(chosen.pool or "")
    if kind is None:
        raise errors.ConfigError(
            f"primary.{name}.pool: libvirt has no pool {chosen.pool!r}; virsh pool-list --all "
            "shows those there are, and ddfs doctor --fix defines again one that was in use"
        )
    if kind in _OF_FILES:
        if chosen.staging is not None:
            raise errors.ConfigError(f"primary.{name}.staging: {chosen.pool!r} holds files")
        return False
    if kind not in _TESTED | _UNTESTED:
        raise errors.ConfigError(
            f"{pool} is of type {kind}, in which ddfs cannot make volumes that a name in the mount "
            f"could lead to; give one of type {', '.join(sorted(_OF_FILES | _TESTED))}{_hint(kind)}"
        )
    if kind in _UNTESTED and not chosen.untested:
        raise errors.ConfigError(
            f"{pool} is of type {kind}, which ddfs was never tested with (it was with "
            f"{', '.join(sorted(_OF_FILES | _TESTED))}); to use it all the same, set untested = "
            f"true in [primary.{name}]"
        )
    if chosen.shared:
        raise errors.ConfigError(f"primary.{name}.shared: only a directory can be shared")
    return True


def _storage(settings: Settings, name: str, path: Path) -> DirectoryStorage:
    limits = settings.primary[name]
    quota = limits.quota.of if limits.quota else None
    keep_free = limits.keep_free.of if limits.keep_free else None
    if limits.pool is not None and _has_volumes(name, limits):
        _make_staging(path)
        keep_definition(settings.state_dir, limits.pool)
        pool = VolumePool(settings.libvirt.uri, limits.pool)
        check = trio.from_thread.check_cancelled
        return VolumeStorage(name, path, pool, quota=quota, keep_free=keep_free, check=check)
    if limits.pool is not None:
        keep_definition(settings.state_dir, limits.pool)
    if not limits.shared:
        return DirectoryStorage(name, path, quota=quota, keep_free=keep_free)
    host_id = _host_id(settings.state_dir)
    return SharedDirectoryStorage(name, path, host_id, quota=quota, keep_free=keep_free)


def _hint(kind: str) -> str:
    return ", and make disks from its templates in rbd: ddfs clone --full" if kind == "rbd" else ""


def keep_definition(state_dir: Path, pool: str, source: Path = LIBVIRT_POOLS) -> None:
    """Keep what libvirt's *pool* is, for the day on which somebody undefines it.

    A pool that is not persistent has no definition, and one that cannot be kept is no reason not
    to start.
    """
    kept = state_dir / KEPT_POOLS / f"{pool}.xml"
    try:
        text = (source / f"{pool}.xml").read_bytes()
        if kept.exists() and kept.read_bytes() == text:
            return
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = kept.with_suffix(".new")
        fresh.write_bytes(text)
        fresh.replace(kept)
    except OSError as error:
        log.info("the definition of pool %s is not kept: %s", pool, error)


def _make_staging(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise errors.StorageError(f"{path}: {error.strerror}") from error


def _host_id(state_dir: Path) -> str:
    """What tells this host's daemon from all others; made once."""
    path = state_dir / "host-id"
    try:
        if not path.exists():
            fresh = path.with_suffix(".new")
            with fresh.open("w") as file:
                file.write(secrets.token_hex(8))
                file.flush()
                # A lost id would leave the old one behind as a host that answers no more.
                os.fsync(file.fileno())
            fresh.replace(path)
            kernel.sync_directory(path.parent)
        text = path.read_text().strip()
    except OSError as error:
        raise errors.StorageError(f"{path}: {error.strerror}") from error
    if not text.isalnum():
        raise errors.StorageError(f"{path}: not what ddfs has written; delete it")
    return text


def figures_of(storages: Sequence[DirectoryStorage]) -> tuple[int, int]:
    """Size and free room of all file systems that the storages are on, in bytes."""
    by_place = {storage.place: storage for storage in storages}
    figures = [storage.figures() for storage in by_place.values()]
    return sum(total for total, _ in figures), sum(free for _, free in figures)


async def unseal(path: Path) -> None:
    """Take the immutable flag off a published file; nothing where there is none. Raises
    :class:`errors.StorageError`.
    """
    try:
        await trio.to_thread.run_sync(kernel.clear_immutable, path)
    except OSError as error:
        raise errors.StorageError(
            f"{path}: libvirt has to open it for writing, and its immutable flag cannot be taken "
            f"off: {error.strerror}"
        ) from error


def most_bytes(storage: DirectoryStorage) -> int:
    """What could be had at most, if everything that is stored could go. Blocks; raises
    :class:`errors.StorageError` where nothing can be written at all.
    """
    try:
        flags = os.statvfs(storage.path).f_flag
    except OSError as error:
        raise errors.StorageError(f"primary storage {storage.path}: {error.strerror}") from error
    if flags & os.ST_RDONLY:
        raise errors.StorageError(f"primary storage {storage.path} is read-only")
    room = storage.room()
    by_file_system = room.free + room.held - room.keep_free
    return by_file_system if room.quota is None else min(room.quota, by_file_system)
