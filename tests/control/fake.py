"""An in-memory Service: small, and honest about names, states and errors."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio
from fastapi import APIRouter

from ddfs import errors
from ddfs.control.action_messages import (
    AttachedDisk,
    AttachTemplate,
    Autostart,
    AutostartDomain,
    ClonedVolume,
    CloneTemplate,
    ExplainGate,
    GateFileReport,
    GateReport,
)
from ddfs.control.deploy_messages import Deploy, DeployedDomain, Obstacles
from ddfs.control.keeping_messages import (
    Collect,
    CollectionStatus,
    DifferenceStatus,
    ForgetHost,
    Pin,
    Place,
    StoredStatus,
    TakeStock,
)
from ddfs.control.messages import (
    AddTemplate,
    ChangeLimits,
    DaemonStatus,
    GateAnswer,
    GateQuestion,
    Limits,
    MirrorStatus,
    PoolStatus,
    TemplateStatus,
)
from ddfs.control.server import serve
from ddfs.control.version_messages import Declared


def make_status(name: str, **changes: object) -> TemplateStatus:
    status = TemplateStatus(
        name=name,
        format="qcow2",
        file_name=f"{name}.qcow2",
        path=f"/srv/ddfs/templates/{name}.qcow2",
        size=1000,
        virtual_size=4000,
        source="https://example.org/a.meta4",
        content_id="sha-256:" + "ab" * 32,
        state="not-downloaded",
        bytes_here=0,
        bytes_per_second=0.0,
        seconds_left=None,
        published_path=None,
        last_error=None,
        retry_in=None,
        added_at=1_700_000_000.0,
        head_is_verified=True,
        readable_early=True,
        mirrors=(MirrorStatus("https://m.example.org/a", 10, 2.5, "busy"),),
    )
    return dataclasses.replace(status, **changes)  # type: ignore[arg-type]


class FakeKeeping:
    """One file that may go, and one that is pinned with the first pin."""

    def __init__(self, service: FakeService) -> None:
        self._service = service
        self.asked: list[Collect] = []
        self.hosts = ["gone"]

    async def collect(self, request: Collect) -> CollectionStatus:
        self.asked.append(request)
        file = StoredStatus("sha-256:ab", "default", "/p/a@1.img", 1000, ("a",), 5.0, None)
        kept = dataclasses.replace(file, path="/p/b@2.img", kept_because="used by domain vm")
        return CollectionStatus(request.dry_run, 1000, (file,), (kept,))

    async def place(self, request: Place) -> None:
        for name in request.names:
            self._service.template(name)

    async def take_stock(self, request: TakeStock) -> list[DifferenceStatus]:
        return [DifferenceStatus("/p/a@1.img", "it is gone", "fetch it again", request.fix)]

    async def forget_host(self, request: ForgetHost) -> None:
        if request.host not in self.hosts:
            raise errors.InvalidValueError(f"no other host called {request.host!r} is known")
        self.hosts.remove(request.host)

    async def pin(self, request: Pin) -> None:
        for name in request.names:
            known = self._service.template(name)
            self._service.known[name] = dataclasses.replace(known, pinned=request.pinned)


class FakeActions:
    """Domains and disks: a disk is a name in a set, and a mark too."""

    def __init__(self, service: FakeService) -> None:
        self._service = service
        self.disks: set[str] = set()
        self.marked: dict[str, bool] = {}
        self.explained: list[ExplainGate] = []
        self.attached: list[tuple[str, AttachTemplate]] = []
        self.cloned: list[CloneTemplate] = []

    def _require(self, name: str) -> TemplateStatus:
        status = self._service.template(name)
        if status.state != "downloaded":
            raise errors.NotHereYetError(f"{status.file_name} is not here")
        return status

    async def explain_gate(self, question: ExplainGate) -> GateReport:
        self.explained.append(question)
        found = tuple(
            GateFileReport(
                "vda",
                "backing",
                status.path,
                False,
                False,
                status.state,
                status.file_name,
                40,
                75.0,
                None if status.state == "downloaded" else f"{status.file_name} is 40 % here",
            )
            for status in self._service.known.values()
        )
        missing = [file for file in found if file.problem]
        message = str(missing[0].problem) if missing else ""
        return GateReport(question.domain or "this domain", not missing, message, found)

    async def attach(self, domain: str, request: AttachTemplate) -> AttachedDisk:
        status = self._require(request.template)
        self.attached.append((domain, request))
        change = "medium" if request.target.startswith("sd") else "disk"
        return AttachedDisk(domain, request.target, status.path, change)

    async def clone(self, request: CloneTemplate) -> ClonedVolume:
        self._service.template(request.template)
        if request.full:
            self._require(request.template)
        if request.volume in self.disks and not request.replace:
            raise errors.NameTakenError(f"{request.volume} is there already")
        replaced = request.volume in self.disks
        self.disks.add(request.volume)
        self.cloned.append(request)
        how = "reflink" if request.full else "overlay"
        pool, path = request.pool or "default", f"/pool/{request.volume}"
        size = request.size or 4000
        return ClonedVolume(pool, request.volume, path, "qcow2", size, how, replaced)

    async def autostart_domains(self) -> list[AutostartDomain]:
        self._service._check()
        return [AutostartDomain(n, True, on) for n, on in sorted(self.marked.items())]

    async def set_autostart(self, domain: str, request: Autostart) -> AutostartDomain:
        if request.enabled:
            self.marked.setdefault(domain, False)
        else:
            self.marked.pop(domain, None)
        return AutostartDomain(domain, request.enabled, False)


class FakeDeploying:
    """A host with room for one domain; ``obstacle`` is why it is not suitable, if it is not."""

    def __init__(self) -> None:
        self.obstacle: str | None = None
        # Set, deploying takes until it is cancelled.
        self.is_slow = False
        self.has_begun = threading.Event()
        self.was_cancelled = threading.Event()
        self.deployed: list[Deploy] = []
        self.discarded: list[str] = []
        self.knows_template = True
        self.lent: set[str] = set()
        self.confirmed: list[str] = []
        self.on_confirm = lambda: None
        self.withdrawn: list[str] = []

    async def obstacles(self, request: Deploy) -> Obstacles:
        return Obstacles((self.obstacle,) if self.obstacle else (), self.knows_template)

    async def deploy(self, request: Deploy, token: str) -> DeployedDomain:
        if self.is_slow:
            self.has_begun.set()
            try:
                await trio.sleep_forever()
            finally:
                self.was_cancelled.set()
        if self.deployed:
            raise errors.NameTakenError(f"a domain called {request.name} is there already")
        self.deployed.append(request)
        self.lent.add(token)
        return DeployedDomain(request.name, "u-u-i-d", f"/pool/{request.name}.qcow2")

    async def confirm(self, token: str) -> None:
        self.on_confirm()
        await trio.lowlevel.checkpoint()
        if token not in self.lent:
            raise errors.NotDeployedError("it is taken back")
        self.lent.discard(token)
        self.confirmed.append(token)

    async def withdraw(self, token: str) -> None:
        self.lent.discard(token)
        self.withdrawn.append(token)

    async def discard(self, name: str) -> None:
        self.discarded.append(name)


class FakeService:
    """Fetches move on by 400 bytes at every look, so that a client sees progress."""

    def __init__(self, *names: str) -> None:
        self.known = {name: make_status(name) for name in names}
        self.keeping = FakeKeeping(self)
        self.deploying = FakeDeploying()
        self.failing: dict[str, str] = {}
        self.raises: Exception | None = None
        self.actions = FakeActions(self)
        self.asked: list[GateQuestion] = []
        self.removed: list[tuple[str, bool]] = []
        self.added: list[AddTemplate] = []
        self.declared: list[AddTemplate] = []
        # Why no template can be registered here.
        self.refusal: str | None = None
        self.started: list[str] = []
        self.gate_seconds = 0.0
        self.seeds: list[str] = []
        self.limits_now = Limits(0, 0, 16, 4)
        self.pool = PoolStatus("ddfs", "/srv/ddfs/templates", False)

    def _check(self) -> None:
        if self.raises is not None:
            raise self.raises

    def _move_on(self, status: TemplateStatus) -> TemplateStatus:
        if status.state != "downloading":
            return status
        if status.name in self.failing:
            return dataclasses.replace(
                status, state="error", last_error=self.failing[status.name], retry_in=30.0
            )
        here = min(status.size, status.bytes_here + 400)
        if here < status.size:
            return dataclasses.replace(
                status, bytes_here=here, bytes_per_second=400.0, seconds_left=1.5
            )
        return dataclasses.replace(
            status, state="downloaded", bytes_here=here, published_path=f"/images/{status.name}"
        )

    def daemon_status(self) -> DaemonStatus:
        self._check()
        return DaemonStatus("0", 1, 2.0, "/srv/ddfs", "/srv/ddfs/templates", 0, 0, len(self.known))

    def templates(self) -> list[TemplateStatus]:
        return [self.template(name) for name in sorted(self.known)]

    def template(self, name: str) -> TemplateStatus:
        self._check()
        # Here every template has its first version alone.
        name = name.removesuffix("@1")
        if name not in self.known:
            raise errors.UnknownTemplateError(f"no template is called {name!r}")
        self.known[name] = self._move_on(self.known[name])
        return self.known[name]

    async def add_template(self, request: AddTemplate) -> TemplateStatus:
        self._check()
        if self.refusal is not None:
            raise errors.InvalidValueError(self.refusal)
        if request.name in self.known:
            raise errors.TemplateExistsError(f"{request.name!r} is taken")
        status = make_status(request.name, source=request.source, format=request.format or "qcow2")
        self.known[request.name] = status
        self.added.append(request)
        return status

    async def remove_template(self, name: str, purge: bool) -> None:
        del self.known[self.template(name).name]
        self.removed.append((name, purge))

    def prefetch(self, names: Sequence[str]) -> list[TemplateStatus]:
        found = [self.template(name).name for name in names]
        for name in found:
            if self.known[name].state != "downloaded":
                self.known[name] = dataclasses.replace(self.known[name], state="downloading")
        return [self.known[name] for name in found]

    async def prefetch_seeded(
        self, names: Sequence[str], seeds: Sequence[str]
    ) -> list[TemplateStatus]:
        for seed in seeds:
            if not Path(seed).is_file():
                raise errors.InvalidValueError(f"{seed}: cannot be a seed")
        self.seeds += seeds
        return self.prefetch(names)

    def cancel(self, names: Sequence[str]) -> list[TemplateStatus]:
        found = [self.template(name).name for name in names]
        for name in found:
            self.known[name] = dataclasses.replace(
                self.known[name], state="not-downloaded", bytes_per_second=0.0, seconds_left=None
            )
        return [self.known[name] for name in found]

    def limits(self) -> Limits:
        return self.limits_now

    def change_limits(self, change: ChangeLimits) -> Limits:
        given = {n: v for n, v in dataclasses.asdict(change).items() if v is not None}
        if given.get("fetches_at_once", 1) < 1:
            raise errors.InvalidValueError("fetches at once: between 1 and 1000")
        self.limits_now = dataclasses.replace(self.limits_now, **given)
        return self.limits_now

    async def gate(self, question: GateQuestion) -> GateAnswer:
        self._check()
        self.asked.append(question)
        await trio.sleep(self.gate_seconds)
        unknown = [file.path for file in question.files if Path(file.path).stem not in self.known]
        return GateAnswer(not unknown, f"not here: {unknown}" if unknown else "")

    async def define_pool(self, name: str | None) -> PoolStatus:
        self.pool = PoolStatus(name or "ddfs", self.pool.path, True, len(self.known))
        return self.pool

    async def refresh_pool(self) -> PoolStatus:
        if not self.pool.active:
            raise errors.LibvirtError("no pool is defined; define it with: ddfs pool define", 49)
        return self.pool

    async def undefine_pool(self) -> PoolStatus:
        self.pool = dataclasses.replace(self.pool, active=False, volumes=None)
        return self.pool

    async def domain_templates(self, domain: str) -> list[TemplateStatus]:
        if domain == "nobody":
            raise errors.LibvirtError("no domain called 'nobody'", 42)
        return self.prefetch(sorted(self.known))

    async def start_domain(self, domain: str) -> None:
        self.started.append(domain)

    def metrics(self) -> bytes:
        return b"ddfs_templates 1\n"


class RunningDaemon:
    """What :func:`running` gives: where it listens, and how to end it early."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ddfs.sock"
        self.reader_path = directory / "ddfs-ro.sock"
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._failure: BaseException | None = None
        self._is_up = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, service: FakeService) -> None:
        def run() -> None:
            try:
                trio.run(self._serve, service)
            except BaseException as failure:
                while isinstance(failure, BaseExceptionGroup):
                    failure = failure.exceptions[0]
                self._failure = failure
            finally:
                self._is_up.set()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        self._is_up.wait()
        if self._failure is not None:
            raise self._failure

    async def _serve(self, service: FakeService) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._start, service)
                self._is_up.set()

    async def _start(self, service: FakeService, *, task_status: trio.TaskStatus[None]) -> None:
        more = [_declarations(service)]
        await serve(service, self.path, self.reader_path, more=more, task_status=task_status)

    def break_off(self) -> None:
        """As :meth:`stop`, from inside."""
        self._scope.cancel()

    def stop(self) -> None:
        if self._token is not None and self._thread is not None and self._thread.is_alive():
            self._token.run_sync_soon(self._scope.cancel)
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure


def _declarations(service: FakeService) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/declarations")
    async def declared() -> Declared:
        """What is declared about every name, secrets included."""
        return Declared(tuple(service.declared))

    return router


@contextmanager
def running(service: FakeService, directory: Path) -> Iterator[RunningDaemon]:
    """The real server for *service* on real sockets in *directory*, in a thread."""
    daemon = RunningDaemon(directory)
    daemon.start(service)
    try:
        yield daemon
    finally:
        daemon.stop()
