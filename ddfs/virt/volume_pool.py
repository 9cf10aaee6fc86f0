"""A libvirt pool that makes volumes and takes in their bytes, as primary storage. All of it blocks.

Each call has a connection of its own: an upload of minutes must not keep the domains and pools
of :class:`ddfs.virt.connection.Libvirt` waiting.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar
from xml.sax.saxutils import escape

import libvirt
from defusedxml.ElementTree import fromstring

from ddfs import errors
from ddfs.virt.connection import opened

T = TypeVar("T")

# What virStreamSend() takes into one message (VIR_NET_MESSAGE_LEGACY_PAYLOAD_MAX); it cuts more.
_CHUNK: Final = 262_120

# A hole is said, not sent; a check for cancellation comes between two.
_HOLE: Final = 64 * 1024**2

# A libvirtd that hangs keeps so many threads, and no more. Uploads are fewer than these.
_CALLS_AT_ONCE: Final = 4
_CALL_SECONDS: Final = 60.0

# "pool has asynchronous jobs running": libvirt looks at the pool again behind each upload.
_BUSY: Final = "asynchronous jobs"
_BUSY_SECONDS: Final = 10.0
_BUSY_PAUSE_SECONDS: Final = 0.1

# How the kinds of pool say that nothing more goes in (storage_backend_disk.c, LVM, ZFS).
_FULL: Final = re.compile(
    r"no large enough free extent|insufficient free space|out of space|not enough free",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class PoolVolume:
    """A volume that was made: its name in the pool, its device, and its size in bytes."""

    name: str
    path: str
    capacity: int


class VolumePool:
    """The pool *name* of the libvirt at *uri*, started when it is not active.

    Every method may run in any thread. All raise :class:`errors.LibvirtError`.
    """

    def __init__(self, uri: str, name: str) -> None:
        self.name = name
        self._uri = uri
        self._calls = threading.BoundedSemaphore(_CALLS_AT_ONCE)

    def room(self) -> tuple[int, int]:
        """Size and free bytes, as of now."""
        with self._pool() as pool:
            _patiently(lambda: pool.refresh(0))
            _, capacity, _, available = pool.info()
            return int(capacity), int(available)

    def name_for(self, wanted: str) -> str:
        """How a new volume is going to be called: as wanted, or as a partition has to be."""
        with self._pool() as pool:
            _patiently(lambda: pool.refresh(0))
            description = fromstring(pool.XMLDesc(0))
            if description.get("type") != "disk":
                return wanted
            device = description.find("source/device")
            path = device.get("path", "") if device is not None else ""
            return _next_partition(path, {volume.name() for volume in pool.listAllVolumes(0)})

    def create(self, name: str, size: int) -> PoolVolume:
        """Make a volume of at least *size* bytes.

        Raises :class:`errors.NameTakenError` and :class:`errors.StorageFullError`.
        """
        document = (
            f"<volume><name>{escape(name)}</name><capacity unit='bytes'>{size}</capacity>"
            f"<allocation unit='bytes'>{size}</allocation></volume>"
        )
        with self._pool() as pool:
            try:
                volume = _patiently(lambda: pool.createXML(document, 0))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_STORAGE_VOL_EXIST:
                    raise errors.NameTakenError(
                        f"pool {self.name} has a volume {name}, and ddfs does not know it; rename "
                        "or delete it"
                    ) from error
                if _FULL.search(str(error)):
                    raise errors.StorageFullError(
                        f"pool {self.name} has no {size} bytes in one piece: {error}; free some "
                        "room, then try again",
                        size,
                    ) from error
                raise
            return _described(volume)

    def upload(
        self, name: str, source: int, size: int, length: int, check: Callable[[], object]
    ) -> None:
        """Write *length* bytes from the start of a volume: *size* of the descriptor *source*,
        then zeros. *check* is called often and may raise to end it.

        Sparse (VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM): zeros are said, and written by libvirtd.
        """
        with self._pool() as pool:
            volume, stream = pool.storageVolLookupByName(name), pool.connect().newStream(0)
            volume.upload(stream, 0, length, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
            try:
                at = 0
                for start, end in _data_ranges(source, size):
                    _send_hole(stream, start - at, check)
                    _send(stream, source, start, end, check)
                    at = end
                _send_hole(stream, length - at, check)
            except BaseException:
                with contextlib.suppress(libvirt.libvirtError):
                    stream.abort()
                raise
            stream.finish()

    def find(self, name: str) -> PoolVolume | None:
        """The volume of that name, as of now."""
        with self._pool() as pool:
            volume = _found(pool, name)
            return _described(volume) if volume is not None else None

    def delete(self, name: str) -> None:
        """Delete a volume; none of that name is fine."""
        with self._pool() as pool:
            volume = _found(pool, name)
            if volume is not None:
                _patiently(lambda: volume.delete(0))

    @contextlib.contextmanager
    def _pool(self) -> Iterator[libvirt.virStoragePool]:
        if not self._calls.acquire(timeout=_CALL_SECONDS):
            raise errors.LibvirtError(
                f"pool {self.name}: libvirtd has not answered {_CALLS_AT_ONCE} calls; see "
                "what it does"
            )
        try:
            with opened(self._uri) as connection:
                pool = connection.storagePoolLookupByName(self.name)
                if not pool.isActive():
                    pool.create(0)
                yield pool
        finally:
            self._calls.release()


def _found(pool: libvirt.virStoragePool, name: str) -> libvirt.virStorageVol | None:
    _patiently(lambda: pool.refresh(0))
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
        return None


def _described(volume: libvirt.virStorageVol) -> PoolVolume:
    return PoolVolume(volume.name(), volume.path(), int(volume.info()[1]))


def _send(
    stream: libvirt.virStream, source: int, start: int, end: int, check: Callable[[], object]
) -> None:
    while start < end:
        check()
        data = os.pread(source, min(_CHUNK, end - start), start)
        if not data:
            raise errors.StorageError("a partial file became shorter while it was uploaded")
        while data:
            sent = stream.send(data)
            if sent <= 0:
                raise libvirt.libvirtError("virStreamSend() failed")
            data = data[sent:]
            start += sent


def _send_hole(stream: libvirt.virStream, length: int, check: Callable[[], object]) -> None:
    while length > 0:
        check()
        stream.sendHole(min(length, _HOLE), 0)
        length -= _HOLE


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file that are no holes (lseek(2)); all of it where nobody knows."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            start, end = at, size
        if start < size:
            yield start, end
        at = end


def _patiently(function: Callable[[], T]) -> T:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return function()
        except libvirt.libvirtError as error:
            if _BUSY not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_BUSY_PAUSE_SECONDS)


def _next_partition(device: str, taken: set[str]) -> str:
    """The first name that is free; libvirt takes no other (virStorageBackendDiskCreateVol)."""
    base = os.path.basename(os.path.realpath(device))
    if base[-1:].isdigit():
        base += "p"
    number = 1
    while f"{base}{number}" in taken:
        number += 1
    return f"{base}{number}"
