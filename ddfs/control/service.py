"""What the control API needs from the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ddfs.control.action_messages import (
    AttachedDisk,
    AttachTemplate,
    Autostart,
    AutostartDomain,
    ClonedVolume,
    CloneTemplate,
    ExplainGate,
    GateReport,
)
from ddfs.control.deploy_messages import Deploy, DeployedDomain, Obstacles
from ddfs.control.keeping import Keeping
from ddfs.control.messages import (
    AddTemplate,
    ChangeLimits,
    DaemonStatus,
    GateAnswer,
    GateQuestion,
    Limits,
    PoolStatus,
    TemplateStatus,
)


class Actions(Protocol):
    """What is done to domains and their disks, beside starting them; see :class:`Service`."""

    async def explain_gate(self, question: ExplainGate) -> GateReport:
        """What the hook would say now about a domain, and why; starts no fetch."""
        ...

    async def attach(self, domain: str, request: AttachTemplate) -> AttachedDisk:
        """Gives a template that is here to a domain, as a medium or a read-only disk.

        :class:`~ddfs.errors.NotHereYetError` for one that is not.
        """
        ...

    async def clone(self, request: CloneTemplate) -> ClonedVolume:
        """Makes a disk from a template; see :meth:`ddfs.clone.Clones.make`."""
        ...

    async def autostart_domains(self) -> list[AutostartDomain]:
        """The domains that are to be started at boot, by name."""
        ...

    async def set_autostart(self, domain: str, request: Autostart) -> AutostartDomain:
        """Marks a domain to be started at boot, or not any more."""
        ...


class Deploying(Protocol):
    """New domains on this host; see :class:`ddfs.deploy.Deployments`."""

    async def obstacles(self, request: Deploy) -> Obstacles:
        """Why this host cannot run it; changes nothing."""
        ...

    async def deploy(self, request: Deploy, token: str) -> DeployedDomain:
        """Makes a domain and starts it; after an error or a cancellation nothing is left, nor
        unless it is confirmed within a minute.
        """
        ...

    async def confirm(self, token: str) -> None:
        """The domain that was made with that token stays; :class:`errors.NotDeployedError`."""
        ...

    async def withdraw(self, token: str) -> None:
        """Ends and takes back what was asked for with that token, unless it is confirmed."""
        ...

    async def discard(self, name: str) -> None:
        """Deletes what an unfinished fetch of a template left."""
        ...


class Service(Protocol):
    """The daemon, as the API sees it. ``daemon.py`` implements it.

    Every method runs in the daemon's event loop. What is not ``async`` answers from memory.
    All may raise any :class:`ddfs.errors.DdfsError`; the API gives it to the caller with its
    HTTP status, and the client raises it again there. Names are template names without
    their format: the command line turns into them what people type.

    An ``async`` method may be cancelled at any ``await`` (the caller hung up, the daemon
    ends) and must then leave things as if it had not been asked, or had been served whole.
    """

    @property
    def keeping(self) -> Keeping:
        """Pins, and what may be deleted."""
        ...

    @property
    def deploying(self) -> Deploying:
        """New domains."""
        ...

    @property
    def actions(self) -> Actions:
        """What is done to domains and their disks."""
        ...

    def daemon_status(self) -> DaemonStatus:
        """The daemon in figures."""
        ...

    def templates(self) -> list[TemplateStatus]:
        """All templates, sorted by name."""
        ...

    def template(self, name: str) -> TemplateStatus:
        """One template; :class:`~ddfs.errors.UnknownTemplateError`."""
        ...

    async def add_template(self, request: AddTemplate) -> TemplateStatus:
        """Registers a template and returns it.

        Asking again for the same name with the same content returns the one that is there;
        with other content it is :class:`~ddfs.errors.TemplateExistsError`.
        """
        ...

    async def remove_template(self, name: str, purge: bool) -> None:
        """Forgets a template; with *purge* the published file goes too.

        :class:`~ddfs.errors.UnknownTemplateError`, :class:`~ddfs.errors.TemplateInUseError`.
        """
        ...

    def prefetch(self, names: Sequence[str]) -> list[TemplateStatus]:
        """Starts fetches by hand, also of what rests after a failure; does not wait.

        All or none: one unknown name starts nothing.
        """
        ...

    async def prefetch_seeded(
        self, names: Sequence[str], seeds: Sequence[str]
    ) -> list[TemplateStatus]:
        """As :meth:`prefetch`, with files of this host that may have parts of them.

        :class:`~ddfs.errors.InvalidValueError` for what cannot be a seed, and for a fetch
        that runs already: then nothing is started.
        """
        ...

    def cancel(self, names: Sequence[str]) -> list[TemplateStatus]:
        """Ends running fetches; what is here is kept. No error where none is running."""
        ...

    def limits(self) -> Limits:
        """What fetches may take."""
        ...

    def change_limits(self, change: ChangeLimits) -> Limits:
        """Changes it, also for those that run; :class:`~ddfs.errors.InvalidValueError`."""
        ...

    async def gate(self, question: GateQuestion) -> GateAnswer:
        """Answers the hook, within the window of ``gate.wait`` seconds.

        A refusal is an answer, not an error.
        """
        ...

    async def define_pool(self, name: str | None) -> PoolStatus:
        """Defines and starts the libvirt pool on the mount, or adopts the one there."""
        ...

    async def refresh_pool(self) -> PoolStatus:
        """Makes libvirt look at the pool again."""
        ...

    async def undefine_pool(self) -> PoolStatus:
        """Takes the pool away from libvirt; nothing in it is deleted."""
        ...

    async def domain_templates(self, domain: str) -> list[TemplateStatus]:
        """The templates that *domain* needs, their fetches started (as by hand)."""
        ...

    async def start_domain(self, domain: str) -> None:
        """Starts *domain*; returns when libvirt has."""
        ...

    def metrics(self) -> bytes:
        """The metrics in Prometheus' text format."""
        ...
