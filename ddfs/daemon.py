"""The daemon: the one place that knows everybody, and wires them.

Order of starting: locks before the mountpoint is touched, the catalogue before the mount
shows it, the mount before the API says that it is there. Ending goes backwards; everything
that has to be on disk is there within two seconds, and the mount is gone within five.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.catalogue.catalogue import Catalogue
from ddfs.catalogue.heads import HeadStore
from ddfs.changes import Changes
from ddfs.clone import Clones, Images
from ddfs.config import Settings
from ddfs.control import server
from ddfs.control.actions import DomainActions
from ddfs.control.deployments import HostDeployments
from ddfs.control.host import Host, HostFigures
from ddfs.control.keeping import HostKeeping
from ddfs.control.later import LaterStarts
from ddfs.control.metrics import HostMetrics
from ddfs.control.verifying import verify_routes
from ddfs.control.versioning import Versioning, version_routes
from ddfs.deploy import Deployed, Deployments, DeployOrder, Facts
from ddfs.fetch import certificates
from ddfs.fetch.access import Grants
from ddfs.fetch.transport import Transport
from ddfs.fuse.pool import TemplatePool
from ddfs.fuse.shown import ShownTemplates
from ddfs.gate import Gate
from ddfs.image import inspect, packed
from ddfs.image.unpack import unpack
from ddfs.keeping.collector import Collector
from ddfs.keeping.looking import Look
from ddfs.keeping.records import Records
from ddfs.keeping.sharing import Sharing
from ddfs.keeping.stocktaking import Stocktaking
from ddfs.limits import HostLimits, Limits
from ddfs.model import ImageFormat, MiB
from ddfs.notify import Supervisor
from ddfs.primary.directory import DirectoryStorage
from ddfs.primary.shared import SharedDirectoryStorage
from ddfs.spool.fetching import Surroundings
from ddfs.spool.room import MakeRoom
from ddfs.spool.spool import Spool
from ddfs.storages import figures_of, most_bytes, storages_of, unseal
from ddfs.templates import Templates
from ddfs.templates.verification import Verifications
from ddfs.templates.versions import Versions
from ddfs.virt import domain_document
from ddfs.virt.autostart import Autostart
from ddfs.virt.connection import Libvirt
from ddfs.virt.devices import Devices
from ddfs.virt.domains import Domains
from ddfs.virt.inventory import HostInventory
from ddfs.virt.machines import Machines
from ddfs.virt.pools import PoolKeeper
from ddfs.virt.rbd import RbdPools
from ddfs.virt.volumes import Volumes

log = logging.getLogger(__name__)

# What has to be known of ending: a person or systemd, in either case in an orderly way.
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run(settings: Settings) -> None:
    """Serve until a termination signal. Raises :class:`errors.DdfsError` for what is wrong
    with the host or the settings, before anything is mounted where that can be known.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "httpcore", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        trio.run(_serve, settings)
    except BaseExceptionGroup as group:
        raise _first_of_ours(group) or group from group


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> errors.DdfsError | None:
    """The error that a person should see, when all that happened are errors of ours."""
    ours, others = group.split(errors.DdfsError)
    if ours is None or others is not None:
        return None
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, errors.DdfsError) else None


async def _serve(settings: Settings) -> None:
    with ExitStack() as stack:
        stack.enter_context(_locked(settings.state_dir))
        storages = storages_of(settings)
        for storage in storages:
            await trio.to_thread.run_sync(storage.prepare)
            stack.callback(storage.close)
        catalogue = await trio.to_thread.run_sync(Catalogue.open, settings.state_dir)
        stack.callback(catalogue.close)
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            await _serve_on(settings, storages, catalogue, signals)
    log.info("ended")


async def _serve_on(
    settings: Settings,
    storages: Sequence[DirectoryStorage],
    catalogue: Catalogue,
    signals: AsyncIterator[int],
) -> None:
    """Wire everything; see the module on the order. The first of *storages* is the default."""
    storage = storages[0]
    ledger_limiter = trio.CapacityLimiter(1)
    libvirt = Libvirt(settings.libvirt.uri)
    keeper = PoolKeeper(libvirt, settings.templates_dir)
    domains, changes = Domains(libvirt), Changes(keeper)
    heads = HeadStore(settings.state_dir)
    records = Records(catalogue.keeping, ledger_limiter)
    await records.load()
    async with _transport(settings) as transport, trio.open_nursery() as fetching:
        common = settings, storage, catalogue, heads, transport, ledger_limiter
        surroundings = _surroundings(*common, lambda *wanted: collector.make_room(*wanted))
        spool = _spool(settings, storages, surroundings, transport, changes, records)
        await fetching.start(spool.run)
        templates, versions = _templates(
            settings, catalogue, spool, heads, transport, changes, ledger_limiter
        )
        inventory = HostInventory(libvirt, settings.templates_dir)
        mount = settings.mountpoint, settings.templates_dir
        look = Look(spool, templates, records, inventory.take, *mount)
        sharing = await _sharing(settings, storages, spool, look)
        collector = Collector(spool, look, sharing=sharing, grace_seconds=settings.gc.grace)
        await templates.load()
        stocktaking = Stocktaking(spool, templates, storages)
        await versions.load()
        shown = ShownTemplates(templates, lambda: figures_of(storages), spool.note_followed)
        pool = TemplatePool(shown, settings.mountpoint)
        later = LaterStarts(templates, domains.start)
        virt, images = (libvirt, keeper, domains), Images(RbdPools(settings.libvirt.uri))
        clones = Clones(templates, settings.templates_dir, Volumes(libvirt), domains, images)
        deployments = _deployments(settings, templates, virt, clones, images, storage)
        host = _host(
            settings,
            storages,
            virt,
            (templates, versions, pool),
            HostLimits(transport, spool.queue, Limits.of(settings)),
            HostKeeping(templates, collector, records, stocktaking, sharing),
            (clones, deployments),
            later,
        )
        verifications = Verifications(templates, catalogue.families, surroundings, spool.repairing)
        shown_by = host.status_of, host.remove_one, host.keeping.check_primary
        versioning = Versioning(templates, versions, *shown_by)
        sockets = settings.socket, settings.reader_socket, settings.socket_group
        more = [version_routes(versioning), verify_routes(templates, verifications)]
        serve = functools.partial(server.serve, host, *sockets, more=more)
        changes.show(pool, templates)
        told = f"{settings.templates_dir}, {len(templates.all())} templates"
        before = changes.run, later.run, verifications.run, serve
        voting = [each.run for each in sharing.values()]
        beside = keeper.run, records.run, stocktaking.at_start, versions.run, deployments.run
        await _serve_mounted(pool, before, (*beside, *voting), told, signals)
        fetching.cancel_scope.cancel()


def _spool(
    settings: Settings,
    storages: Sequence[DirectoryStorage],
    surroundings: Surroundings,
    transport: Transport,
    changes: Changes,
    records: Records,
) -> Spool:
    # A source there would wait for itself, or be what a fetch is writing.
    partial = (storage.partial_dir for storage in storages)
    transport.elsewhere.forbidden = (settings.mountpoint, *partial)
    return Spool(
        surroundings,
        on_change=changes.content_changed,
        on_use=records.note_use,
        others=storages[1:],
    )


def _host(
    settings: Settings,
    storages: Sequence[DirectoryStorage],
    virt: tuple[Libvirt, PoolKeeper, Domains],
    shown: tuple[Templates, Versions, TemplatePool],
    limits: HostLimits,
    keeping: HostKeeping,
    disks: tuple[Clones, Deployments],
    later: LaterStarts,
) -> Host:
    """What the API answers with."""
    _, keeper, domains = virt
    templates, versions, pool = shown
    makes_devices = {storage.name: storage.makes_devices for storage in storages}
    gate = Gate(
        templates,
        settings.templates_dir,
        settings.gate.wait,
        unseal,
        lambda template: pool.seen(template.row),
        lambda primary: makes_devices.get(primary or "", storages[0].makes_devices),
    )
    return Host(
        templates,
        gate,
        keeper,
        domains,
        _domain_actions(templates, gate, virt, disks, settings.templates_dir),
        HostFigures(settings.mountpoint, settings.templates_dir, storages),
        limits,
        HostMetrics(templates, pool, storages, versions.state).text,
        keeping,
        HostDeployments(disks[1], templates),
        later.add if settings.gate.then == "start" else None,
        versions.state,
    )


async def _sharing(
    settings: Settings, storages: Sequence[DirectoryStorage], spool: Spool, look: Look
) -> dict[str, Sharing]:
    """With other hosts: what they may be deleting now is used by nobody here from now on."""
    shared = [each for each in storages if isinstance(each, SharedDirectoryStorage)]
    wait = settings.gc.wait
    found = {s.name: Sharing(s, spool.leaving, look, wait_seconds=wait) for s in shared}
    for each in found.values():
        await each.start()
    return found


def _surroundings(
    settings: Settings,
    storage: DirectoryStorage,
    catalogue: Catalogue,
    heads: HeadStore,
    transport: Transport,
    ledger_limiter: trio.CapacityLimiter,
    make_room: MakeRoom,
) -> Surroundings:
    """What all fetches share."""
    return Surroundings(
        storage=storage,
        ledger=catalogue,
        inspector=_Inspector(),
        heads=heads,
        transport=transport,
        location=settings.network.location,
        ledger_limiter=ledger_limiter,
        unpack=unpack,
        grants=_Grants(catalogue, transport, ledger_limiter).of,
        make_room=make_room,
    )


def _deployments(
    settings: Settings,
    templates: Templates,
    virt: tuple[Libvirt, PoolKeeper, Domains],
    clones: Clones,
    images: Images,
    storage: DirectoryStorage,
) -> Deployments:
    libvirt, keeper, _ = virt

    async def pool_is_active() -> bool:
        pool = await keeper.status()
        return pool is not None and pool.active

    return Deployments(
        templates,
        clones,
        Volumes(libvirt),
        images,
        _Hypervisor(Machines(libvirt)),
        settings.state_dir / "deploying",
        pool_is_active=pool_is_active,
        most_bytes=lambda: most_bytes(storage),
    )


class _Hypervisor:
    """libvirt's machines, as deployments ask for them."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self.facts = machines.facts
        self.has_domain = machines.has_domain
        self.start = machines.start
        self.remove = machines.remove

    async def network_problem(self, order: DeployOrder) -> str | None:
        name = order.network
        if name is None and order.document is None:
            name = domain_document.DEFAULT_NETWORK
        # Those in a document of the operator's own are libvirt's to judge.
        if name is None or name == domain_document.NO_NETWORK:
            return None
        return await self._machines.network_problem(name)

    async def define(self, order: DeployOrder, made: Deployed, facts: Facts) -> None:
        machine = domain_document.Machine(
            made.name,
            made.uuid,
            _disk_of(made, made.disk),
            facts.hypervisor,
            facts.arch,
            _disk_of(made, made.seed) if made.seed else None,
            order.memory_mib,
            order.vcpus,
            order.network,
        )
        await self._machines.define(machine, order.document)

    def needs(self, order: DeployOrder) -> tuple[str | None, int]:
        document, given = order.document, order.memory_mib
        arch, memory = order.arch, domain_document.DEFAULT_MEMORY_MIB * MiB
        if document is not None:
            arch = arch or domain_document.arch_of(document)
            memory = domain_document.memory_bytes_of(document) or memory
        return arch, given * MiB if given is not None else memory


def _disk_of(made: Deployed, path: Path) -> str | domain_document.RbdImage:
    return str(path) if made.rbd is None else domain_document.RbdImage.of(made.rbd, str(path))


def _domain_actions(
    templates: Templates,
    gate: Gate,
    virt: tuple[Libvirt, PoolKeeper, Domains],
    disks: tuple[Clones, Deployments],
    directory: Path,
) -> DomainActions:
    libvirt, _, domains = virt
    clones, deployments = disks
    devices, marks, undoing = Devices(libvirt), Autostart(libvirt), deployments.undoing
    return DomainActions(templates, gate, domains, devices, marks, clones, undoing, str(directory))


def _templates(
    settings: Settings,
    catalogue: Catalogue,
    spool: Spool,
    heads: HeadStore,
    transport: Transport,
    changes: Changes,
    ledger_limiter: trio.CapacityLimiter,
) -> tuple[Templates, Versions]:
    """What is registered, and what is known of its sources."""
    templates = Templates(
        catalogue,
        spool,
        heads,
        transport,
        inspect.inspect_head,
        packed.look,
        location=settings.network.location,
        keyring=settings.network.keyring,
        ledger_limiter=ledger_limiter,
        on_added=changes.added,
        on_removed=changes.removed,
    )
    versions = Versions(templates, catalogue.families, catalogue, ledger_limiter=ledger_limiter)
    spool.explain, spool.judge = versions.explain, templates.signatures
    return templates, versions


async def _serve_mounted(
    pool: TemplatePool,
    before: Sequence[Callable[..., Awaitable[object]]],
    beside: Sequence[Callable[[], Awaitable[object]]],
    status: str,
    signals: AsyncIterator[int],
) -> None:
    """Mount, start what has to run *before* the daemon is there, and what runs *beside*."""
    async with trio.open_nursery() as mounted:
        await mounted.start(pool.serve)
        async with trio.open_nursery() as serving:
            for task in beside:
                serving.start_soon(task)
            for needed in before:
                await serving.start(needed)
            await _wait_for_the_end(serving, signals, status)
            serving.cancel_scope.cancel()
        await pool.close()


async def _wait_for_the_end(
    serving: trio.Nursery, signals: AsyncIterator[int], status: str
) -> None:
    """Say that the daemon serves, and return when it is told to end."""
    supervisor = Supervisor.of(os.environ)
    await serving.start(supervisor.keep_awake)
    supervisor.ready(status)
    log.info("ready: %s", status)
    async for number in signals:
        log.info("%s: ending", signal.Signals(number).name)
        supervisor.stopping()
        return


def _transport(settings: Settings) -> Transport:
    return Transport(
        ca_directory=certificates.directory_of(settings.state_dir),
        allow_networks=settings.network.allow_networks,
    )


class _Grants:
    """With what the origins of a content are asked: what is declared about all its names."""

    def __init__(
        self, catalogue: Catalogue, transport: Transport, limiter: trio.CapacityLimiter
    ) -> None:
        self._catalogue = catalogue
        self._transport = transport
        self._limiter = limiter

    async def of(self, content_id: str) -> Grants:
        """Files with secrets are read anew. Raises :class:`errors.InvalidValueError`."""
        declared = await trio.to_thread.run_sync(
            self._catalogue.declarations, content_id, limiter=self._limiter
        )
        return await self._transport.grants(declared)


class _Inspector:
    """The image inspector, as the spool asks for it."""

    def inspect_head(self, data: bytes, size: int, claimed: ImageFormat) -> None:
        inspect.inspect_head(data, size=size, claimed=claimed)

    def inspect_file(self, path: Path, claimed: ImageFormat) -> None:
        inspect.inspect_file(path, claimed=claimed)


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """The state directory, made if needed, and ours alone."""
    lock = state_dir / "lock"
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.StorageError(
            f"{state_dir}: {error.strerror}; make it a directory that ddfs can write to, or "
            "set state_dir to another"
        ) from error
    try:
        _take(fd, state_dir)
        yield
    finally:
        os.close(fd)


def _take(fd: int, state_dir: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 20, 0).decode(errors="replace").strip()
        raise errors.AlreadyRunningError(
            f"{state_dir}: another daemon (pid {owner or 'unknown'}) uses it; end that first"
        ) from None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        # A file system without any room at all still makes the empty file.
        raise errors.StorageError(
            f"{state_dir}: {error.strerror}; make room there, or set state_dir to another"
        ) from error
