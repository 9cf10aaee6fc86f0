"""May a host run a domain? Asked before anything is done on it."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from ddfs import errors
from ddfs.deploy.order import DeployOrder
from ddfs.deploy.placing import Places
from ddfs.deploy.ports import Hypervisor
from ddfs.model import MiB, Template
from ddfs.templates import Templates

T = TypeVar("T")

# Beside what the guest gets, QEMU needs some; a host that swaps starts nothing more.
MEMORY_TO_SPARE_BYTES: Final = 128 * MiB

_limiter = trio.CapacityLimiter(1)


@dataclass(frozen=True, slots=True)
class Suitability:
    """``obstacles`` are why a host cannot run it, a line each; it may be that it could but does
    not know the template.
    """

    obstacles: Sequence[str]
    knows_template: bool


class Judge:
    """Judges this host; the arguments are those of :class:`ddfs.deploy.Deployments`."""

    def __init__(
        self,
        templates: Templates,
        places: Places,
        hypervisor: Hypervisor,
        pool_is_active: Callable[[], Awaitable[bool]],
        most_bytes: Callable[[], int],
    ) -> None:
        self._templates = templates
        self._places = places
        self._hypervisor = hypervisor
        self._pool_is_active = pool_is_active
        self._most_bytes = most_bytes

    async def judge(self, order: DeployOrder) -> Suitability:
        """All that can be known. Changes nothing; what cannot be asked is an obstacle too.

        Raises :class:`errors.InvalidValueError` for a document that is wrong on every host.
        """
        needs = self._hypervisor.needs(order)
        found = []
        template = None
        with contextlib.suppress(errors.UnknownTemplateError):
            template = self._templates.newest(order.template)
        try:
            found += await self._obstacles_on_host(order, *needs)
            found += await self._places.obstacles(order, template)
            if not await self._pool_is_active():
                found.append("libvirt does not show the template pool; run: ddfs pool define")
        except errors.DdfsError as error:
            found.append(str(error))
        if template is None:
            return Suitability(found, knows_template=False)
        try:
            missing = await _run(self._missing_room, template)
        except errors.DdfsError as error:
            return Suitability([*found, str(error)], knows_template=True)
        if missing > 0:
            found.append(f"primary storage has {missing // MiB} MiB too little room")
        return Suitability(found, knows_template=True)

    async def _obstacles_on_host(
        self, order: DeployOrder, arch: str | None, memory: int
    ) -> list[str]:
        found = []
        facts = await self._hypervisor.facts()
        if arch not in (None, facts.arch):
            found.append(f"the host is of architecture {facts.arch}, not {arch}")
        if memory + MEMORY_TO_SPARE_BYTES > facts.free_memory_bytes:
            found.append(
                f"{facts.free_memory_bytes // MiB} MiB of memory are free, "
                f"{(memory + MEMORY_TO_SPARE_BYTES) // MiB} are needed"
            )
        if await self._hypervisor.has_domain(order.name):
            found.append(f"a domain called {order.name} is there already")
        # libvirt looks for it when the domain starts, which is after the download.
        problem = await self._hypervisor.network_problem(order)
        if problem is not None:
            found.append(problem)
        return found

    def _missing_room(self, template: Template) -> int:
        """Bytes that cannot be had there even if all else goes; the fetch sees to the rest."""
        if self._templates.published(template):
            return 0
        return template.size - self._most_bytes()


async def _run(function: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(function, *arguments, limiter=_limiter)
