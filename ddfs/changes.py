"""What has changed: told to the mount, to the directory under it, and to libvirt's pool."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Protocol

import trio

from ddfs import errors
from ddfs.fuse.pool import TemplatePool
from ddfs.model import Template
from ddfs.templates import Templates

log = logging.getLogger(__name__)


class VolumePool(Protocol):
    """libvirt's pool on the mount."""

    def note_changed(self) -> None:
        """Let libvirt look again, soon."""


class Changes:
    """Tells the mount, the directory under it, and libvirt's pool what has changed."""

    def __init__(self, keeper: VolumePool) -> None:
        self._keeper = keeper
        self._pool: TemplatePool | None = None
        self._templates: Templates | None = None
        self._queue, self._work = trio.open_memory_channel[Template](float("inf"))

    def show(self, pool: TemplatePool, templates: Templates) -> None:
        """From now on there is a mount to tell."""
        self._pool, self._templates = pool, templates

    def content_changed(self, content_id: str) -> None:
        """A fetch began or ended."""
        if self._pool is None or self._templates is None:
            return
        self._templates.note_unpacked(content_id)
        for template in self._templates.with_content(content_id):
            self._pool.note_changed(template.row)
            self._queue.send_nowait(template)

    def added(self, template: Template) -> None:
        """A template is new; it may be published already, under another name."""
        if self._pool is not None:
            self._pool.note_added(template.file_name)
            self._queue.send_nowait(template)
        self._keeper.note_changed()

    def removed(self, template: Template) -> None:
        """A template is gone."""
        if self._pool is not None:
            self._pool.note_removed(template.file_name, template.row)
            self._queue.send_nowait(template)
        self._keeper.note_changed()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the symlinks under the mountpoint as the templates are; errors are logged."""
        await self._link_under(self._reconcile)
        task_status.started()
        async for template in self._work:
            await self._link_under(functools.partial(self._relink, template))

    async def _link_under(self, change: Callable[[], None]) -> None:
        try:
            await trio.to_thread.run_sync(change)
        except errors.StorageError as error:
            log.warning("%s", error)

    def _reconcile(self) -> None:
        assert self._pool is not None
        assert self._templates is not None
        published = {t.file_name: self._templates.published(t) for t in self._templates.all()}
        self._pool.underlay.reconcile({n: p.path for n, p in published.items() if p is not None})

    def _relink(self, template: Template) -> None:
        assert self._pool is not None
        assert self._templates is not None
        # By name: another template may have it by now.
        current = self._templates.by_file_name(template.file_name)
        published = self._templates.published(current) if current else None
        if published is None:
            self._pool.underlay.unlink(template.file_name)
        else:
            self._pool.underlay.link(template.file_name, published.path)
