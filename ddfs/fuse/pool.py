"""The mount: its making, its life and its end."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from ddfs import errors
from ddfs.fuse import inodes, mounts, sessionloop, tuning
from ddfs.fuse.guard import Guard
from ddfs.fuse.invalidation import Invalidations
from ddfs.fuse.keptheads import KeptHeads
from ddfs.fuse.mounts import Mount
from ddfs.fuse.notices import Notices
from ddfs.fuse.operations import TemplateOperations
from ddfs.fuse.underlay import Underlay
from ddfs.fuse.view import TemplateView

log = logging.getLogger(__name__)

# `ro` makes the kernel itself say EROFS to chown, which libvirt tolerates; without
# `allow_other` not even root could use it but for the daemon's own user.
OPTIONS: Final = (
    "allow_other", "default_permissions", "ro", "nodev", "nosuid",
    f"fsname={mounts.FSNAME}", f"subtype={mounts.SUBTYPE}",
)  # fmt: skip

# The kernel says FUSE_INIT within microseconds of the mount.
_INIT_SECONDS: Final = 10.0

# Of the 5 seconds in which the mount has to be gone: for handlers to give their answers,
# for the thread that writes notices, and for the guard.
_ANSWER_SECONDS: Final = 1.0
_QUIET_SECONDS: Final = 0.1
_QUIET_STEPS: Final = 10
_NOTICES_SECONDS: Final = 0.5
_CLOSE_SECONDS: Final = 4.0


class TemplatePool:
    """Shows *view* at *mountpoint*, in its directory ``templates``.

    pyfuse3 has one session per process, so there is one pool per process at a time. All
    methods belong to the event loop. Nobody in this process may touch the mount from there,
    not even by ``stat``.
    """

    def __init__(self, view: TemplateView, mountpoint: Path, *, with_guard: bool = True) -> None:
        self.mountpoint = mountpoint
        # Set while mounted. For /sys/fs/fuse/connections, when nothing else answers.
        self.connection_id: int | None = None
        # What keeps this mount from its full speed, for `ddfs doctor`.
        self.degraded: list[str] = []
        self._view = view
        self._with_guard = with_guard
        self._changes = Notices("fuse-changes")
        self._notices = Invalidations(self._changes)
        # Apart from the changes: storing a head may wait for a reader of that file.
        self._heads = Notices("fuse-heads")
        self._kept = KeptHeads(self._heads)
        self._operations = TemplateOperations(
            view,
            is_stale=self._notices.is_stale,
            on_demand=self._attributes_changed,
            kept=self._kept,
        )
        self._underlay: Underlay | None = None
        self._mount: Mount | None = None
        self._guard: Guard | None = None
        self._failure: str | None = None
        self._session_ended = trio.Event()
        self._is_serving = False
        self._stop = trio.Event()
        self._stopped = trio.Event()

    # --- figures -------------------------------------------------------------------------

    @property
    def requests(self) -> Counter[str]:
        """How many requests of each kind were answered; only grows."""
        return self._operations.requests

    @property
    def crashes(self) -> Counter[str]:
        """How many of them ended in an unexpected exception, by kind."""
        return self._operations.crashes

    @property
    def readers_waiting(self) -> int:
        """How many reads wait for their bytes now."""
        return self._operations.readers_waiting

    @property
    def underlay(self) -> Underlay:
        """The directory under the mountpoint; there while :meth:`serve` runs."""
        if self._underlay is None:
            raise RuntimeError("no underlay before the mount")
        return self._underlay

    # --- what has changed ----------------------------------------------------------------

    def note_changed(self, row: int) -> None:
        """A template's state has changed: a fetch began or ended, it was published.

        To be called after the view shows it. Its name is looked up anew if it has become a
        symlink, or was one.
        """
        self._attributes_changed(row)
        entry = self._view.by_row(row)
        if entry is None:
            return
        is_link = entry.published_path is not None
        if is_link or row in self._operations.linked:
            self._kept.forget(row)
            self._forget_name(entry.name, row)
        if not is_link:
            self._operations.linked.discard(row)

    def note_added(self, name: str) -> None:
        """A template of that file name is new."""
        self._directory_changed()
        self._notices.forget_name(inodes.TEMPLATES, os.fsencode(name))

    def note_removed(self, name: str, row: int) -> None:
        """The template is gone. Who has it open sees whatever the view's read says."""
        self._directory_changed()
        self._kept.forget(row)
        self._forget_name(name, row)
        self._operations.linked.discard(row)

    async def seen(self, row: int) -> None:
        """Return when whoever looks at a template's name sees what :meth:`note_changed` told.

        Whoever holds the directory can hold that up: the caller has a deadline.
        """
        await self._notices.told(inodes.file_inode(row), inodes.link_inode(row))

    def _attributes_changed(self, row: int) -> None:
        self._notices.forget_attributes(inodes.file_inode(row))

    def _forget_name(self, name: str, row: int) -> None:
        both = inodes.file_inode(row), inodes.link_inode(row)
        self._notices.forget_name(inodes.TEMPLATES, os.fsencode(name), *both)

    def _directory_changed(self) -> None:
        self._operations.directory_changed()
        self._notices.forget_attributes(inodes.TEMPLATES)

    # --- life ----------------------------------------------------------------------------

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Mount, and serve until cancelled or :meth:`close`.

        Started (for ``nursery.start``) once the mount answers. Raises
        :class:`errors.MountError` when it cannot be mounted, and when somebody unmounts it
        from outside. However it ends, waiting readers have EIO and the mount is gone.
        """
        if self._is_serving:
            raise RuntimeError("this pool has been served already")
        self._is_serving = True
        try:
            path = await trio.to_thread.run_sync(mounts.prepare, self.mountpoint)
            self._underlay = await trio.to_thread.run_sync(Underlay.open, path)
            await self._serve_at(path, task_status)
        finally:
            if self._underlay is not None:
                self._underlay.close()
                self._underlay = None
            self._stopped.set()

    async def close(self) -> None:
        """End :meth:`serve` and wait until the mount is gone; nothing if it does not run."""
        self._stop.set()
        if self._is_serving:
            await self._stopped.wait()

    async def _serve_at(self, path: Path, task_status: trio.TaskStatus[None]) -> None:
        sessionloop.install()
        try:
            pyfuse3.init(self._operations, str(path), set(OPTIONS))
        except RuntimeError as error:
            raise errors.MountError(
                f"{path}: mounting failed ({error}; libfuse says why on standard error): "
                "it takes root with CAP_SYS_ADMIN"
            ) from error
        # The session outlives our own cancellation, because readers wait for its answers.
        session = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_session, session)
            try:
                await self._settle(path)
                task_status.started()
                await self._stop.wait()
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
                    await self._shut_down(path)
                session.cancel()
        if self._failure is not None:
            raise errors.MountError(f"{path}: {self._failure}")

    async def _run_session(self, scope: trio.CancelScope) -> None:
        failure = "the template pool was unmounted from outside"
        try:
            with scope:
                await pyfuse3.main(min_tasks=tuning.MIN_TASKS, max_tasks=tuning.MAX_TASKS)
        except Exception as error:
            # Guarded handlers cannot do this; a broken /dev/fuse can.
            log.exception("pyfuse3's session ended")
            failure = f"pyfuse3's session ended: {error!r}"
        if not self._stop.is_set():
            self._failure = failure
            self._stop.set()
        self._session_ended.set()

    async def _settle(self, path: Path) -> None:
        """Wait for FUSE_INIT, then do what only a living mount lets itself be told."""
        with trio.move_on_after(_INIT_SECONDS):
            await self._operations.initialized.wait()
        # The answer to FUSE_INIT, which sets limits of its own, goes out before the session
        # comes to its next checkpoint, and so before we come back from here.
        await trio.lowlevel.checkpoint()
        mount = await trio.to_thread.run_sync(mounts.top, path)
        if mount is None or not mount.is_ours or not self._operations.initialized.is_set():
            raise errors.MountError(f"{path}: the kernel does not talk to the new mount")
        self._mount, self.connection_id = mount, mount.connection_id
        self.degraded = await trio.to_thread.run_sync(tuning.raise_limits, mount)
        if self._with_guard:
            lock_fd = self.underlay.lock_fd
            self._guard = await trio.to_thread.run_sync(Guard, mount, lock_fd)
        self._changes.start()
        self._heads.start()
        log.info("template pool mounted at %s (connection %d)", path, mount.connection_id)

    async def _shut_down(self, path: Path) -> None:
        """Answer all readers, then take the mount away, even if files in it are open.

        The threads that write notices end while the session still answers, because they may
        be waiting for an answer; and before the session is freed, because they write to it.
        """
        self._stop.set()
        with trio.move_on_after(_ANSWER_SECONDS):
            await self._operations.fail_readers()
        await trio.to_thread.run_sync(self._unmount, path)
        # A read of many pages comes again for each after a failure: until it is quiet,
        # these get EIO as well, and not the end of the connection.
        for _ in range(_QUIET_STEPS):
            before = self.requests.total()
            await trio.sleep(_QUIET_SECONDS)
            if self.requests.total() == before:
                break
        self._changes.stop()
        self._heads.stop()
        is_quiet = await trio.to_thread.run_sync(self._have_notices_ended)
        if not is_quiet and self.connection_id is not None:
            mounts.abort(self.connection_id)
            is_quiet = await trio.to_thread.run_sync(self._have_notices_ended)
        pyfuse3.terminate()
        with trio.move_on_after(_ANSWER_SECONDS):
            await self._session_ended.wait()
        if is_quiet and self._session_ended.is_set():
            pyfuse3.close(unmount=False)
        else:
            log.error("the session of %s cannot be freed; it ends with this process", path)
        if self._guard is not None:
            await trio.to_thread.run_sync(self._guard.dismiss)
        self.connection_id = None

    def _have_notices_ended(self) -> bool:
        until = time.monotonic() + _NOTICES_SECONDS
        return all(
            notices.join(max(0.0, until - time.monotonic()))
            for notices in (self._changes, self._heads)
        )

    def _unmount(self, path: Path) -> None:
        current = mounts.top(path)
        if current is None or not current.is_ours:
            return
        if self._mount is not None and current.device != self._mount.device:
            return
        try:
            mounts.unmount(path, lazily=True)
        except OSError as error:
            log.error("%s cannot be unmounted: %s", path, error)
