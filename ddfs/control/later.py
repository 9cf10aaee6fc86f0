"""Domains that are started once their templates are here: ``gate.then = "start"``.

The hook has refused the start by then, so libvirt is free, and the daemon asks for it anew.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from ddfs import errors
from ddfs.model import Template
from ddfs.templates import Templates

log = logging.getLogger(__name__)


class LaterStarts:
    """Starts domains when their templates are published; each domain waits once."""

    def __init__(self, templates: Templates, start: Callable[[str], Awaitable[None]]) -> None:
        self._templates = templates
        self._start = start
        self._waiting: set[str] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the waiting; cancelled, the domains stay as they are."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def add(self, domain: str, pending: Sequence[Template]) -> None:
        """Start *domain* when all of *pending* are published. Asked twice, it waits once."""
        if self._nursery is not None and domain not in self._waiting:
            self._waiting.add(domain)
            self._nursery.start_soon(self._start_when_here, domain, pending)

    async def _start_when_here(self, domain: str, pending: Sequence[Template]) -> None:
        try:
            for template in pending:
                await self._templates.wait_published(template)
            log.info("domain %s: its templates are here; starting it", domain)
            await self._start(domain)
        except errors.DdfsError as error:
            log.error("domain %s, which waited for its templates: %s", domain, error)
        finally:
            self._waiting.discard(domain)
