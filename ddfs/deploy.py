"""A new domain on this host from one of its templates: all of it, or nothing.

Before a step is done it is written down what would have to be taken back, so that a daemon
that dies midway leaves nothing behind either: the next one takes it back.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from ddfs import errors
from ddfs.clone import Clone, CloneOrder
from ddfs.image.seed_disk import seed_disk
from ddfs.model import GiB, MiB, Template
from ddfs.templates import Templates

T = TypeVar("T")

log = logging.getLogger(__name__)

# A name is also that of files, of libvirt's own beside ours, and of a host in the guest.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")

# cloud-init itself takes 16 KiB from many clouds; more than this is no configuration.
MAX_USER_DATA_BYTES: Final = MiB

# A machine that gets less does not even load its kernel; more than this has no host.
MIN_MEMORY_MIB: Final = 16
MAX_MEMORY_MIB: Final = 64 * 1024 * 1024
MAX_VCPUS: Final = 4096

# Beside what the guest gets, QEMU needs some; a host that swaps starts nothing more.
MEMORY_TO_SPARE_BYTES: Final = 128 * MiB

# An overlay begins with some hundred KiB and grows with what the guest writes.
ROOM_FOR_OVERLAY_BYTES: Final = GiB // 4

# libvirt may take long to end a guest; then it goes on without us, and the next start of the
# daemon sees to the rest.
UNDO_SECONDS: Final = 60.0

_limiter = trio.CapacityLimiter(1)


@dataclass(frozen=True, slots=True)
class DeployOrder:
    """A domain called *name* from *template*, its disk in *pool*.

    ``disk_size`` in bytes, None for the template's. ``document`` is the XML of a domain to
    fill in, ``user_data`` cloud-init's; None for none. The others as in
    :class:`ddfs.virt.domain_document.Machine`. ``arch`` None: the host's, or the document's.
    """

    template: str
    name: str
    pool: str
    memory_mib: int | None = None
    vcpus: int | None = None
    disk_size: int | None = None
    network: str | None = None
    arch: str | None = None
    user_data: bytes | None = None
    document: str | None = None

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise errors.InvalidValueError(
                f"{self.name[:140]!r} cannot be a domain's name here: use 1 to 63 letters, digits "
                "and ._+-, starting with a letter or digit"
            )
        if self.memory_mib is not None and not MIN_MEMORY_MIB <= self.memory_mib <= MAX_MEMORY_MIB:
            raise errors.InvalidValueError(
                f"memory: {self.memory_mib} MiB cannot be; write {MIN_MEMORY_MIB}M or more"
            )
        if self.vcpus is not None and not 1 <= self.vcpus <= MAX_VCPUS:
            raise errors.InvalidValueError(f"vcpus: {self.vcpus} cannot be; write 1 to {MAX_VCPUS}")
        if self.user_data is not None and len(self.user_data) > MAX_USER_DATA_BYTES:
            raise errors.InvalidValueError(f"user data: more than {MAX_USER_DATA_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class Deployed:
    """What runs now."""

    name: str
    uuid: str
    disk: Path
    seed: Path | None


class Facts(Protocol):
    """What the host is and has free."""

    @property
    def arch(self) -> str:
        """As libvirt names it."""

    @property
    def hypervisor(self) -> str:
        """``kvm`` or ``qemu``."""

    @property
    def free_memory_bytes(self) -> int:
        """Caches included."""


class Hypervisor(Protocol):
    """libvirt's domains. All raise :class:`errors.LibvirtError`."""

    async def facts(self) -> Facts:
        """Of the host, now."""

    async def has_domain(self, name: str) -> bool:
        """Whether the name is taken."""

    async def define(self, order: DeployOrder, made: Deployed, facts: Facts) -> None:
        """Define it; :class:`errors.InvalidValueError` for a document that is none."""

    async def start(self, identity: str) -> None:
        """Start the one with that UUID."""

    async def remove(self, identity: str) -> None:
        """End and undefine the one with that UUID, if it is there."""

    def needs(self, order: DeployOrder) -> tuple[str | None, int]:
        """The architecture, None for any, and the memory in bytes that it takes."""


class Disks(Protocol):
    """Makes disks; ``ddfs.clone.Clones`` does."""

    async def make(self, order: CloneOrder) -> Clone:
        """Make one."""


class Pools(Protocol):
    """libvirt's storage pools whose volumes are files."""

    async def directory(self, pool: str) -> Path:
        """Where the volumes of an active pool lie."""

    async def refresh(self, pool: str) -> None:
        """Let libvirt see what has changed."""


@dataclass
class _Traces:
    """What has to be taken back: written down before it is made."""

    name: str
    uuid: str
    pool: str
    files: list[str] = field(default_factory=list)


class Deployments:
    """Makes domains, one after the other: two must not both take the last memory.

    *directory* holds the notes of unfinished ones. ``pool_is_active`` tells whether libvirt
    shows the template pool, ``most_bytes`` the room that primary storage could make at most.
    """

    def __init__(
        self,
        templates: Templates,
        disks: Disks,
        pools: Pools,
        hypervisor: Hypervisor,
        directory: Path,
        *,
        pool_is_active: Callable[[], Awaitable[bool]],
        most_bytes: Callable[[], int],
    ) -> None:
        self._templates = templates
        self._disks = disks
        self._pools = pools
        self._hypervisor = hypervisor
        self._directory = directory
        self._pool_is_active = pool_is_active
        self._most_bytes = most_bytes
        self._one = trio.Lock()

    # -- suitable? -------------------------------------------------------------------------

    async def obstacles(self, order: DeployOrder) -> list[str]:
        """Why this host cannot run it, a line each; none if it can, as far as one can know.

        Changes nothing. Whatever cannot be asked is an obstacle too.
        """
        found = []
        try:
            found += await self._obstacles_on_host(order)
            directory = await self._pools.directory(order.pool)
            found += await _run(_obstacles_in, directory, order)
            if not await self._pool_is_active():
                found.append("libvirt does not show the template pool; run: ddfs pool define")
        except errors.DdfsError as error:
            found.append(str(error))
        try:
            template = self._templates.newest(order.template)
        except errors.UnknownTemplateError as error:
            return [*found, str(error)]
        missing = await _run(self._missing_room, template)
        if missing > 0:
            found.append(f"primary storage has {missing // MiB} MiB too little room")
        return found

    async def _obstacles_on_host(self, order: DeployOrder) -> list[str]:
        found = []
        facts = await self._hypervisor.facts()
        arch, memory = self._hypervisor.needs(order)
        if arch not in (None, facts.arch):
            found.append(f"the host is of architecture {facts.arch}, not {arch}")
        if memory + MEMORY_TO_SPARE_BYTES > facts.free_memory_bytes:
            found.append(
                f"{facts.free_memory_bytes // MiB} MiB of memory are free, "
                f"{(memory + MEMORY_TO_SPARE_BYTES) // MiB} are needed"
            )
        if await self._hypervisor.has_domain(order.name):
            found.append(f"a domain called {order.name} is there already")
        return found

    def _missing_room(self, template: Template) -> int:
        """Bytes that cannot be had there even if all else goes; the fetch sees to the rest."""
        if self._templates.published(template):
            return 0
        return template.size - self._most_bytes()

    # -- making ----------------------------------------------------------------------------

    async def make(self, order: DeployOrder) -> Deployed:
        """Make disk, seed and domain, and start it; the template has to be here.

        After any error or a cancellation nothing of it is left on this host. Raises what its
        parts raise, and :class:`errors.NotHereYetError`.
        """
        async with self._one:
            template = self._templates.newest(order.template)
            if not await self._templates.confirm_published(template):
                raise errors.NotHereYetError(
                    f"{template.file_name} is not here; run: ddfs prefetch {template.name}"
                )
            if await self._hypervisor.has_domain(order.name):
                raise errors.NameTakenError(f"a domain called {order.name} is there already")
            traces = _Traces(order.name, str(uuid.uuid4()), order.pool)
            try:
                made = await self._make(order, template.exact_name, traces)
            except BaseException:
                with trio.move_on_after(UNDO_SECONDS) as scope:
                    scope.shield = True
                    await self._try_to_take_back(traces)
                raise
            with trio.CancelScope(shield=True):
                await _run(self._note(traces).unlink, True)
            log.info("%s: deployed from %s", order.name, template.file_name)
            return made

    async def _make(self, order: DeployOrder, template: str, traces: _Traces) -> Deployed:
        directory = await self._pools.directory(order.pool)
        disk = directory / f"{order.name}.qcow2"
        await self._announce(traces, disk)
        try:
            # The version that was looked at: a newer one may come meanwhile.
            clone = CloneOrder(template, disk.name, order.pool, order.disk_size)
            await self._disks.make(clone)
        except errors.NameTakenError:
            # Somebody was faster: it is not ours to take back.
            traces.files.remove(str(disk))
            raise
        seed = None
        if order.user_data is not None:
            seed = directory / f"{order.name}-seed.iso"
            await self._announce(traces, seed)
            await _run(_write_seed, seed, traces.uuid, order.name, order.user_data)
            await self._pools.refresh(order.pool)
        made = Deployed(order.name, traces.uuid, disk, seed)
        await self._hypervisor.define(order, made, await self._hypervisor.facts())
        await self._hypervisor.start(traces.uuid)
        return made

    async def _announce(self, traces: _Traces, path: Path) -> None:
        """Write down that *path* is about to be made; it must not be there."""
        if await _run(os.path.lexists, path):
            raise errors.NameTakenError(f"{path} is there already; choose another name for the VM")
        traces.files.append(str(path))
        await _run(_write_note, self._note(traces), traces)

    # -- taking back -----------------------------------------------------------------------

    async def recover(self) -> None:
        """Take back what a daemon that died had begun. Errors are logged, and it is tried
        again at the next start.
        """
        for path in await _run(lambda: sorted(self._directory.glob("*.json"))):
            try:
                traces = _Traces(**json.loads(await _run(path.read_text)))
                log.warning("%s: its deployment was interrupted, and is taken back", traces.name)
                await self._take_back(traces)
            except (errors.DdfsError, OSError, ValueError, TypeError) as error:
                log.error("%s: cannot be taken back now: %s", path, error)

    async def _try_to_take_back(self, traces: _Traces) -> None:
        """What failed first is what is to be told: a failure here is logged, and the note stays
        for the next start.
        """
        try:
            await self._take_back(traces)
        except (errors.DdfsError, OSError) as error:
            log.error("%s: taken back when the daemon starts again: %s", traces.name, error)

    async def _take_back(self, traces: _Traces) -> None:
        await self._hypervisor.remove(traces.uuid)
        for path in reversed(traces.files):
            await _run(functools.partial(Path(path).unlink, missing_ok=True))
        if traces.files:
            await self._pools.refresh(traces.pool)
        await _run(self._note(traces).unlink, True)

    def _note(self, traces: _Traces) -> Path:
        return self._directory / f"{traces.name}.json"


async def _run(function: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(function, *arguments, limiter=_limiter)


def _obstacles_in(directory: Path, order: DeployOrder) -> list[str]:
    paths = [directory / f"{order.name}.qcow2"]
    if order.user_data is not None:
        paths.append(directory / f"{order.name}-seed.iso")
    found = [f"{path} is there already" for path in paths if os.path.lexists(path)]
    try:
        room = os.statvfs(directory)
    except OSError as error:
        return [*found, f"{directory}: {error.strerror}"]
    if room.f_bavail * room.f_frsize < ROOM_FOR_OVERLAY_BYTES:
        found.append(f"{directory} has too little room for a new disk")
    return found


def _write_note(path: Path, traces: _Traces) -> None:
    """Durable before this returns: only then may anything be made."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        with open(fresh, "w", encoding="utf-8") as file:
            json.dump(vars(traces), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise errors.StorageError(f"{path}: {error.strerror}") from error


def _write_seed(path: Path, instance: str, name: str, user_data: bytes) -> None:
    data = seed_disk(instance, name, user_data)
    try:
        # Passwords are in it. libvirt gives it to QEMU's user.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise errors.StorageError(f"{path}: {error.strerror}") from error
