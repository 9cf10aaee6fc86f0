"""From the settings to the primary storages of this host."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from ddfs import errors
from ddfs.config import PrimarySettings, Settings
from ddfs.image.domain import PoolTargets
from ddfs.primary.directory import DirectoryStorage
from ddfs.primary.shared import SharedDirectoryStorage


def storages_of(settings: Settings) -> list[DirectoryStorage]:
    """All of them, the default first; not prepared yet."""
    return [_storage(settings, name, path) for name, path in paths_of(settings).items()]


def paths_of(settings: Settings) -> dict[str, Path]:
    """The directories of the primary storages, the default first."""
    paths: dict[str, Path] = {}
    for name, chosen in settings.primary.items():
        path = _primary_path(name, chosen)
        if path == settings.mountpoint or settings.mountpoint in path.parents:
            raise errors.ConfigError(f"primary.{name}: {path} lies in the mountpoint itself")
        for other, taken in paths.items():
            if os.path.realpath(taken) == os.path.realpath(path):
                raise errors.ConfigError(f"primary.{name}: {path} is primary.{other} already")
        paths[name] = path
    return paths


def _primary_path(name: str, chosen: PrimarySettings) -> Path:
    """A libvirt pool's is read from its XML file, so that libvirtd may be down."""
    if chosen.pool is None:
        assert chosen.path is not None
        return chosen.path
    target = PoolTargets().pool_target(chosen.pool)
    if target is None:
        raise errors.ConfigError(
            f"primary.{name}.pool: libvirt has no pool {chosen.pool!r} with a directory; "
            "virsh pool-list --all shows those there are"
        )
    if Path("/dev") in (Path(target), *Path(target).parents):
        raise errors.ConfigError(
            f"primary.{name}.pool: {chosen.pool!r} holds devices and no files; give a pool of type "
            "dir, fs or netfs"
        )
    return Path(target)


def _storage(settings: Settings, name: str, path: Path) -> DirectoryStorage:
    limits = settings.primary[name]
    quota = limits.quota.of if limits.quota else None
    keep_free = limits.keep_free.of if limits.keep_free else None
    if not limits.shared:
        return DirectoryStorage(name, path, quota=quota, keep_free=keep_free)
    host_id = _host_id(settings.state_dir)
    return SharedDirectoryStorage(name, path, host_id, quota=quota, keep_free=keep_free)


def _host_id(state_dir: Path) -> str:
    """What tells this host's daemon from all others; made once."""
    path = state_dir / "host-id"
    try:
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_text(secrets.token_hex(8))
            fresh.replace(path)
        text = path.read_text().strip()
    except OSError as error:
        raise errors.StorageError(f"{path}: {error.strerror}") from error
    if not text.isalnum():
        raise errors.StorageError(f"{path}: not what ddfs has written; delete it")
    return text


def figures_of(storages: Sequence[DirectoryStorage]) -> tuple[int, int]:
    """Size and free room of all file systems that the storages are on, in bytes."""
    by_device = {storage.device: storage for storage in storages}
    figures = [storage.figures() for storage in by_device.values()]
    return sum(total for total, _ in figures), sum(free for _, free in figures)


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
