"""A new domain on this host from one of its templates: all of it, or nothing.

Before a step is done it is written down what would have to be taken back, so that a daemon
that dies midway leaves nothing behind either: the next one takes it back.

A domain is lent until whoever asked for it has confirmed it. One who lost the connection
before the answer goes on to another host, and must not have two.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import trio

from ddfs import errors
from ddfs.clone import Images, Undo
from ddfs.deploy.order import Deployed, DeployOrder
from ddfs.deploy.placing import Noted, Places
from ddfs.deploy.ports import Disks, Hypervisor, Pools
from ddfs.deploy.suitability import Judge, Suitability
from ddfs.deploy.traces import Notes, Traces
from ddfs.templates import Templates

T = TypeVar("T")

log = logging.getLogger(__name__)

# A confirmation follows the answer at once; this is for a connection that is slow or stalls.
CONFIRM_SECONDS: Final = 60.0

# libvirt may take long to end a guest; then it goes on without us, and we look again.
UNDO_SECONDS: Final = 60.0
UNDO_AGAIN_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 2.0

# A UUID fits. Whoever asks chooses it, and nobody else can guess it.
_TOKEN: Final = re.compile(r"[A-Za-z0-9-]{16,64}")

_limiter = trio.CapacityLimiter(1)


@dataclass(frozen=True)
class _Attempt:
    """A deployment under way, or waiting for its turn."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    has_ended: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True)
class _Lent:
    """A domain that runs and was not confirmed yet."""

    traces: Traces
    until: float


@dataclass(frozen=True)
class _Left:
    """What could not be taken back yet."""

    traces: Traces
    token: str | None


class Deployments:
    """Makes domains, one after the other: two must not both take the last memory.

    *directory* holds the notes of unfinished ones. ``pool_is_active`` tells whether libvirt
    shows the template pool, ``most_bytes`` the room that primary storage could make at most
    (or raises why there is none). :meth:`run` has to run as long as deployments are made.
    """

    def __init__(
        self,
        templates: Templates,
        disks: Disks,
        pools: Pools,
        images: Images,
        hypervisor: Hypervisor,
        directory: Path,
        *,
        pool_is_active: Callable[[], Awaitable[bool]],
        most_bytes: Callable[[], int],
    ) -> None:
        self._templates = templates
        self._hypervisor = hypervisor
        self._notes = Notes(directory)
        self._places = Places(disks, pools, images, self._notes, self._settle)
        self._judge = Judge(templates, self._places, hypervisor, pool_is_active, most_bytes)
        self._one = trio.Lock()
        self._attempts: dict[str, _Attempt] = {}
        self._lent: dict[str, _Lent] = {}
        self._left: dict[str, _Left] = {}
        # The UUIDs of all that this daemon has begun: their notes are no dead one's.
        self._begun: set[str] = set()
        # By UUID: what is being taken back now.
        self._undoing: dict[str, trio.Event] = {}

    async def judge(self, order: DeployOrder) -> Suitability:
        """Whether this host can run it, as far as one can know; changes nothing."""
        return await self._judge.judge(order)

    # -- making ----------------------------------------------------------------------------

    async def make(self, order: DeployOrder, token: str) -> Deployed:
        """Make disk, seed and domain, and start it; the template has to be here.

        It is lent: taken back unless :meth:`confirm` is called with the *token* within
        :data:`CONFIRM_SECONDS`. After any error or a cancellation nothing of it is left on this
        host; what cannot be taken back at once is logged, and taken back later. Raises what
        its parts raise, :class:`errors.NotHereYetError`, and
        :class:`errors.NotDeployedError` where :meth:`withdraw` was called meanwhile.
        """
        if _TOKEN.fullmatch(token) is None or token in self._attempts or token in self._lent:
            raise errors.InvalidValueError("token: 16 to 64 letters, digits and -, never used")
        attempt = self._attempts[token] = _Attempt()
        try:
            with attempt.scope:
                return await self._make_in_turn(order, token)
        finally:
            del self._attempts[token]
            attempt.has_ended.set()
        raise errors.NotDeployedError(f"{order.name}: taken back, as was asked for")

    async def _make_in_turn(self, order: DeployOrder, token: str) -> Deployed:
        async with self._one:
            template = self._templates.newest(order.template)
            if not await self._templates.confirm_published(template):
                raise errors.NotHereYetError(
                    f"{template.file_name} is not here; run: ddfs prefetch {template.exact_name}"
                )
            await self._refuse_taken(order.name)
            traces = self._traces(order.name, order.pool)
            try:
                made = await self._make(order, template.exact_name, traces)
            except BaseException:
                await self._take_back(traces, token)
                raise
            self._lent[token] = _Lent(traces, trio.current_time() + CONFIRM_SECONDS)
            log.info("%s: deployed from %s", order.name, template.file_name)
            return made

    async def _refuse_taken(self, name: str) -> None:
        for left in [left for left in self._left.values() if left.traces.name == name]:
            await self._take_back(left.traces, left.token)
            if left.traces.uuid in self._left:
                raise errors.NameTakenError(
                    f"an earlier deployment of {name} is still to be taken back; the log of the "
                    "daemon says what is in the way"
                )
        if await self._hypervisor.has_domain(name):
            raise errors.NameTakenError(f"a domain called {name} is there already")

    async def _make(self, order: DeployOrder, template: str, traces: Traces) -> Deployed:
        made = await self._places.make(order, template, traces)
        await self._hypervisor.define(order, made, await self._hypervisor.facts())
        await self._hypervisor.start(traces.uuid)
        return made

    def undoing(self, pool: str, volume: str) -> Undo:
        """What takes back a *volume* in *pool* of no deployment, should it stay half made."""
        traces = self._traces(f"volume {volume}", pool)
        return _Lone(traces, self._notes, self._settle, self._take_back)

    def _traces(self, name: str, pool: str) -> Traces:
        traces = Traces(name, str(uuid.uuid4()), pool)
        self._begun.add(traces.uuid)
        return traces

    async def _settle(self, pool: str, image: str) -> None:
        """What is still to be deleted under a name must not be what is made there now."""
        for left in list(self._left.values()):
            if left.traces.pool == pool and image in left.traces.images:
                await self._take_back(left.traces, left.token)
                if left.traces.uuid in self._left:
                    raise errors.NameTakenError(
                        f"a volume {image} in pool {pool} is still to be taken back; the daemon's "
                        "log says what is in the way"
                    )

    # -- lent ------------------------------------------------------------------------------

    async def confirm(self, token: str) -> None:
        """The domain stays. :class:`errors.NotDeployedError` where it was taken back already;
        after :class:`errors.StorageError` it will be, unless it is confirmed again.
        """
        lent = self._lent.pop(token, None)
        if lent is None:
            raise errors.NotDeployedError(
                "it was not confirmed in time, or has been withdrawn, and is taken back"
            )
        with trio.CancelScope(shield=True):
            try:
                await _run(self._notes.remove, lent.traces)
            except errors.StorageError:
                self._lent[token] = lent
                raise

    async def withdraw(self, token: str) -> None:
        """End the deployment with that token, however far it is; then nothing of it is left.

        Of one that is confirmed or not known, nothing is done. Raises
        :class:`errors.NotDeployedError` for what could not be taken back yet.
        """
        attempt = self._attempts.get(token)
        if attempt is not None:
            attempt.scope.cancel()
            await attempt.has_ended.wait()
        lent = self._lent.pop(token, None)
        if lent is not None:
            await self._take_back(lent.traces, token)
        for left in self._left.values():
            if left.token == token:
                raise errors.NotDeployedError(
                    f"{left.traces.name}: not everything could be taken back yet; the daemon goes "
                    "on trying, and its log says what is in the way"
                )

    # -- taking back -----------------------------------------------------------------------

    async def run(self) -> None:
        """Take back what a daemon that died had begun; from then on what is not confirmed in
        time, and what could not be taken back at once. Until cancelled.
        """
        await self._recover()
        again_at = trio.current_time()
        while True:
            now = trio.current_time()
            for token, lent in list(self._lent.items()):
                if lent.until <= now and self._lent.pop(token, None) is not None:
                    name = lent.traces.name
                    log.warning("%s: nobody has confirmed its deployment; taken back", name)
                    await self._take_back(lent.traces, token)
            if again_at <= now:
                for left in list(self._left.values()):
                    if left.traces.uuid in self._left:  # nobody else was faster
                        await self._take_back(left.traces, left.token)
                again_at = now + UNDO_AGAIN_SECONDS
            await trio.sleep(_LOOK_SECONDS)

    async def _recover(self) -> None:
        # What begins then knows what is left of an earlier one of its name.
        async with self._one:
            try:
                found, broken = await _run(self._notes.read)
            except errors.StorageError as error:
                found, broken = [], [str(error)]
            for line in broken:
                log.error("%s", line)
            for traces in found:
                if traces.uuid not in self._begun:
                    name = traces.name
                    log.warning("%s: an earlier daemon died over it; it is taken back", name)
                    self._left[traces.uuid] = _Left(traces, None)

    async def _take_back(self, traces: Traces, token: str | None) -> None:
        """Not cancellable. What fails here is logged, since what failed first is what is to be
        told; the note stays, and :meth:`run` tries again.
        """
        self._left[traces.uuid] = _Left(traces, token)
        under_way = self._undoing.get(traces.uuid)
        if under_way is not None:
            # A second one would lag behind, and delete what is made anew under that name.
            with trio.CancelScope(shield=True):
                await under_way.wait()  # it has a deadline
            return
        ended = self._undoing[traces.uuid] = trio.Event()
        try:
            await self._undo(traces)
        finally:
            del self._undoing[traces.uuid]
            ended.set()

    async def _undo(self, traces: Traces) -> None:
        again = f"tried again in {UNDO_AGAIN_SECONDS:.0f} s, and when the daemon starts"
        with trio.move_on_after(UNDO_SECONDS) as scope:
            scope.shield = True
            try:
                await self._hypervisor.remove(traces.uuid)
                await self._places.clear(traces)
                await _run(self._notes.remove, traces)
                self._left.pop(traces.uuid, None)
            except errors.DdfsError as error:
                log.error("%s: not taken back: %s; %s", traces.name, error, again)
        if scope.cancelled_caught:
            text = f"not taken back within {UNDO_SECONDS:.0f} s"
            log.error("%s: %s; %s", traces.name, text, again)


class _Lone(Noted):
    """As its base, of a volume that no deployment takes back."""

    def __init__(
        self,
        traces: Traces,
        notes: Notes,
        settle: Callable[[str, str], Awaitable[None]],
        take_back: Callable[[Traces, str | None], Awaitable[None]],
    ) -> None:
        super().__init__(traces, notes, settle)
        self._take_back = take_back

    async def keep(self) -> None:
        """It stays; durable when it returns."""
        await _run(self.notes.remove, self.traces)

    async def take_back(self) -> None:
        """Now, or as soon as that can be."""
        await self._take_back(self.traces, None)


async def _run(function: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(function, *arguments, limiter=_limiter)
