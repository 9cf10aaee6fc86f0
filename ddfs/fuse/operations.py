"""The FUSE handlers: requests of the kernel in, answers of the view out.

None of them but :meth:`TemplateOperations.read` waits for anything. Mounted read-only, the
kernel refuses most writes itself; the handlers here answer the rest alike, with EROFS and
never ENOSYS, because libvirt's chown tolerates the one and not the other
(``virSecurityDACSetOwnershipInternal``).
"""

from __future__ import annotations

import bisect
import errno
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import pyfuse3
import trio

from ddfs import errors
from ddfs.fuse import attributes, inodes, requesters
from ddfs.fuse.handlers import guarded
from ddfs.fuse.keptheads import Head, KeptHeads
from ddfs.fuse.notices import Notices
from ddfs.fuse.requesters import Requester
from ddfs.fuse.view import Entry, TemplateView

log = logging.getLogger(__name__)

TEMPLATES_NAME: Final = "templates"

# libvirt holds a domain or a pool while it reads a header, and `virsh list` hangs with it.
IMPATIENT_SECONDS: Final = 2.0

XATTR_PREFIX: Final = "user.ddfs."

# What a reader may see from an error of ours: an errno that tells him what to do, else EIO.
# EAGAIN, for one, is nothing that a blocking read may say.
_READ_ERRNOS: Final = frozenset({errno.ENOSPC})


class TemplateOperations(pyfuse3.Operations):
    """Serves one view. Handles are numbers (see inodes.py); no request leaves anything behind.

    ``requests`` and ``crashes`` count by kind of request. ``is_stale`` says of an inode
    whether the kernel was told to forget its name and may not have done so yet.
    ``on_demand`` is called with a row whose fetch an open may have started. ``kept`` knows
    which heads the kernel has.
    """

    def __init__(
        self,
        view: TemplateView,
        *,
        is_stale: Callable[[int], bool] = lambda _inode: False,
        on_demand: Callable[[int], None] = lambda _row: None,
        identify: Callable[[int], Requester] = requesters.identify,
        kept: KeptHeads | None = None,
    ) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()
        self.crashes: Counter[str] = Counter()
        self.initialized = trio.Event()
        # Rows of which the kernel has seen a symlink.
        self.linked: set[int] = set()
        self._view = view
        self._is_stale = is_stale
        self._on_demand = on_demand
        self._identify = identify
        self._kept = kept or KeptHeads(Notices("nobody-writes-these"))
        self._waiting: set[trio.CancelScope] = set()
        # By row: of its pages some may be locked.
        self._unanswered: Counter[int] = Counter()
        self._is_closing = False
        self._all_answered = trio.Event()
        self._changed_ns = time.time_ns()

    # --- for the mount -------------------------------------------------------------------

    @property
    def readers_waiting(self) -> int:
        """How many reads are being answered now."""
        return len(self._waiting)

    def directory_changed(self) -> None:
        """The list of templates has changed: so has the directory's mtime."""
        self._changed_ns = max(time.time_ns(), self._changed_ns + 1)

    async def fail_readers(self) -> None:
        """Answer every waiting read with EIO, and every one that comes, for ever.

        Returns when the last one has its answer. Cancelled, it has failed them all the same.
        """
        self._is_closing = True
        for scope in self._waiting:
            scope.cancel()
        if self._waiting:
            await self._all_answered.wait()

    def init(self) -> None:
        """The kernel has said FUSE_INIT; the answer goes out as soon as this returns."""
        self.initialized.set()

    # --- names and attributes ------------------------------------------------------------

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, _ctx: Any) -> pyfuse3.EntryAttributes:
        """A name in one of the two directories."""
        if parent_inode == inodes.ROOT and os.fsdecode(name) == TEMPLATES_NAME:
            return self._directory(inodes.TEMPLATES)
        if parent_inode == inodes.TEMPLATES:
            entry = self._view.by_name(os.fsdecode(name))
            if entry is not None:
                return self._as_it_is(entry)
        # An error, not an entry with a timeout: nobody remembers that a name is not there.
        raise pyfuse3.FUSEError(errno.ENOENT)

    @guarded
    async def getattr(self, inode: int, _ctx: Any) -> pyfuse3.EntryAttributes:
        """Attributes of the very inode: an old file keeps its own after publishing."""
        if inode in (inodes.ROOT, inodes.TEMPLATES):
            return self._directory(inode)
        entry = self._entry(inode)
        if inodes.is_link(inode):
            if entry.published_path is None:
                raise pyfuse3.FUSEError(errno.ESTALE)
            return attributes.link(entry, entry.published_path)
        return self._file(entry)

    @guarded
    async def readlink(self, inode: int, _ctx: Any) -> bytes:
        """Where a published template is.

        Whoever saw a link, and reads it when the template has been purged, gets EINVAL from the
        kernel, as of any name that was a link a moment ago (readlink(2)): ``ls -l`` may say so.
        """
        entry = self._entry(inode)
        target = entry.published_path
        if target is None or not inodes.is_link(inode):
            raise pyfuse3.FUSEError(errno.ESTALE)
        self._view.note_followed(entry.row)
        return os.fsencode(target)

    @guarded
    async def access(self, _inode: int, _mode: int, _ctx: Any) -> bool:
        """With ``default_permissions`` the kernel decides itself and does not ask."""
        return True

    @guarded
    async def statfs(self, _ctx: Any) -> pyfuse3.StatvfsData:
        """Primary storage, from memory."""
        return attributes.file_system(self._view.figures(), len(self._view.entries()))

    @guarded
    async def getxattr(self, inode: int, name: bytes, _ctx: Any) -> bytes:
        """``user.ddfs.*`` of a template; other names as libvirt tolerates them."""
        text = os.fsdecode(name)
        if not text.startswith("user."):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        if not text.startswith(XATTR_PREFIX) or inodes.row_of(inode) is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        entry = self._entry(inode)
        value = self._view.attributes(entry.row).get(text.removeprefix(XATTR_PREFIX))
        if value is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return os.fsencode(value)

    @guarded
    async def listxattr(self, inode: int, _ctx: Any) -> Sequence[bytes]:
        """The names that :meth:`getxattr` answers."""
        if inodes.row_of(inode) is None or inodes.is_link(inode):
            return []
        names = self._view.attributes(self._entry(inode).row)
        return [os.fsencode(XATTR_PREFIX + name) for name in names]

    # --- directories ---------------------------------------------------------------------

    @guarded
    async def opendir(self, inode: int, ctx: Any) -> int:
        """A directory's handle is its inode, and whether libvirt opened it."""
        if inode not in (inodes.ROOT, inodes.TEMPLATES):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        is_impatient = self._identify(ctx.pid) is Requester.LIBVIRT
        return inodes.Handle(inode, is_impatient=is_impatient).pack()

    @guarded
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """Entries behind *start_id*, which is the row of the last one that was shown, plus 1.

        Rows only grow and are never used again, so a listing shows every template once,
        whatever is added or removed meanwhile.
        """
        handle = inodes.Handle.unpack(fh)
        if handle.inode == inodes.ROOT:
            if start_id == 0:
                shown = self._directory(inodes.TEMPLATES)
                pyfuse3.readdir_reply(token, TEMPLATES_NAME.encode(), shown, 1)
            return
        entries = self._view.entries()
        first = bisect.bisect_left(entries, start_id, key=lambda entry: entry.row)
        last = first
        for i in range(first, len(entries)):
            entry = entries[i]
            shown = self._as_it_is(entry)
            if not pyfuse3.readdir_reply(token, os.fsencode(entry.name), shown, entry.row + 1):
                break
            last = i + 1
        if handle.is_impatient:
            # libvirt is about to open them all. The kernel knows their inodes once it has this
            # answer, and that goes out before the event loop comes to anything else.
            loop = trio.lowlevel.current_trio_token()
            loop.run_sync_soon(self._keep_heads, entries[first:last])

    @guarded
    async def releasedir(self, fh: int) -> None:
        """Nothing is kept for a directory that is open."""

    # --- files ---------------------------------------------------------------------------

    @guarded
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Never waits. A plain open starts the fetch; see the module ``requesters``."""
        if flags & (os.O_ACCMODE | os.O_TRUNC | os.O_APPEND):
            raise pyfuse3.FUSEError(errno.EROFS)
        entry = self._entry(inode)
        if entry.published_path is not None and self._is_stale(inode):
            # The kernel still has the name under the old inode. ESTALE makes it look the
            # name up again (LOOKUP_REVAL in fs/namei.c) and follow the symlink.
            raise pyfuse3.FUSEError(errno.ESTALE)
        if flags & os.O_NONBLOCK:
            return self._open_probe(entry, ctx)
        return self._open_plainly(entry, ctx)

    def _open_probe(self, entry: Entry, ctx: Any) -> pyfuse3.FileInfo:
        inode = inodes.file_inode(entry.row)
        is_impatient = self._identify(ctx.pid) is Requester.LIBVIRT
        if is_impatient and self._is_kept(entry):
            handle = inodes.Handle(inode, is_probe=True, is_impatient=True, is_kept=True)
            return pyfuse3.FileInfo(fh=handle.pack(), direct_io=False, keep_cache=True)
        if entry.published_path is None and entry.size and not self._has_head(entry.row):
            # A read that fails takes libvirt's whole pool down; this one file is passed
            # over (virStorageBackendVolOpen).
            raise pyfuse3.FUSEError(errno.ENXIO)
        handle = inodes.Handle(inode, is_probe=True, is_impatient=is_impatient)
        # Through the page cache the kernel would read ahead of the head, and keep a head
        # that was not verified.
        return pyfuse3.FileInfo(fh=handle.pack(), direct_io=True, keep_cache=True)

    def _is_kept(self, entry: Entry) -> bool:
        # Where somebody waits for bytes of the file, pages of its head may be locked.
        row = entry.row
        return entry.published_path is None and self._kept.has(row) and not self._unanswered[row]

    def _keep_heads(self, entries: Sequence[Entry]) -> None:
        """Have the kernel keep what libvirt reads of them, where it may."""
        try:
            heads = [head for entry in entries if (head := self._head_to_keep(entry))]
            if heads:
                self._kept.store(heads)
        except Exception:
            # Nobody asked for it, so nobody gets the error, least of all the event loop.
            self.crashes["keep_heads"] += 1
            log.exception("heads cannot be given to the kernel; libvirt has to ask for them")

    def _head_to_keep(self, entry: Entry) -> Head | None:
        row = entry.row
        if entry.published_path is not None or self._kept.is_needless(row):
            return None
        if self._unanswered[row] or self._view.is_fetching(row):
            return None
        read = self._view.head_to_keep(row)
        return None if read is None else Head(row, entry.size, read)

    def _open_plainly(self, entry: Entry, ctx: Any) -> pyfuse3.FileInfo:
        requester = Requester.ANYBODY
        if entry.published_path is None:
            self._demand(entry.row)
            requester = self._identify(ctx.pid)
        if requester is Requester.QEMU:
            raise pyfuse3.FUSEError(errno.EAGAIN)
        is_impatient = requester is Requester.LIBVIRT
        handle = inodes.Handle(inodes.file_inode(entry.row), is_impatient=is_impatient)
        # Whoever has no time for all of a read-ahead window gets what he asked for. For all
        # others the bytes of an inode never change, so the kernel may keep them.
        return pyfuse3.FileInfo(fh=handle.pack(), direct_io=is_impatient, keep_cache=True)

    def _has_head(self, row: int) -> bool:
        try:
            return self._view.read_head(row, 0, 1) is not None
        except (errors.DdfsError, OSError) as error:
            log.warning("the head of template row %d cannot be read: %s", row, error)
            return False

    def _demand(self, row: int) -> None:
        was_fetching = self._view.is_fetching(row)
        self._view.demand(row)
        if not was_fetching:
            self._on_demand(row)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Verified bytes, or the head for a probe.

        Waits as long as the view does, but :data:`IMPATIENT_SECONDS` at most for libvirt,
        and not a moment longer than the mount lives.
        """
        handle = inodes.Handle.unpack(fh)
        row = inodes.row_of(handle.inode)
        if row is None:
            raise pyfuse3.FUSEError(errno.EISDIR)
        entry = self._view.by_row(row)
        if entry is not None and off >= entry.size:
            return b""
        if handle.is_probe:
            if handle.is_kept:
                self._kept.forget_all()  # or the kernel would not have asked
            head = self._view.read_head(row, off, size)
            if head is not None:
                return head
            if handle.is_kept and size > attributes.BLOCK:
                # The kernel reads ahead. What is asked for itself comes page by page.
                raise pyfuse3.FUSEError(errno.EIO)
            self._demand(row)
        return await self._read_verified(row, off, size, handle.is_impatient)

    async def _read_verified(self, row: int, off: int, size: int, is_impatient: bool) -> bytes:
        if self._is_closing:
            raise pyfuse3.FUSEError(errno.EIO)
        deadline = trio.current_time() + IMPATIENT_SECONDS if is_impatient else math.inf
        with trio.CancelScope(deadline=deadline) as scope:
            self._waiting.add(scope)
            self._unanswered[row] += 1
            try:
                return await self._view.read(row, off, size)
            except errors.DdfsError as error:
                log.debug("a read of template row %d at %d fails: %s", row, off, error)
                code = error.errno if error.errno in _READ_ERRNOS else errno.EIO
                raise pyfuse3.FUSEError(code) from None
            finally:
                self._waiting.discard(scope)
                self._answered(row)
                if self._is_closing and not self._waiting:
                    self._all_answered.set()
        raise pyfuse3.FUSEError(errno.EIO)

    def _answered(self, row: int) -> None:
        self._unanswered[row] -= 1
        if not self._unanswered[row]:
            del self._unanswered[row]

    @guarded
    async def release(self, fh: int) -> None:
        """Nothing is kept for a file that is open."""

    # --- common --------------------------------------------------------------------------

    def _entry(self, inode: int) -> Entry:
        row = inodes.row_of(inode)
        entry = None if row is None else self._view.by_row(row)
        if entry is None:
            # Removed while its name was known: the kernel looks again and finds nothing.
            raise pyfuse3.FUSEError(errno.ESTALE)
        return entry

    def _as_it_is(self, entry: Entry) -> pyfuse3.EntryAttributes:
        if entry.published_path is None:
            return self._file(entry)
        self.linked.add(entry.row)
        return attributes.link(entry, entry.published_path)

    def _file(self, entry: Entry) -> pyfuse3.EntryAttributes:
        here, is_fetching = self._view.bytes_here(entry.row), self._view.is_fetching(entry.row)
        return attributes.file(entry, here, is_fetching)

    def _directory(self, inode: int) -> pyfuse3.EntryAttributes:
        return attributes.directory(inode, self._changed_ns)


def _refusing(kind: str) -> Callable[..., Any]:
    async def refuse(_self: TemplateOperations, *_: Any) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    refuse.__name__ = kind
    return guarded(refuse)


# What would change something. pyfuse3's own answer, ENOSYS, is fatal to libvirt's chown.
REFUSED: Final = (
    "create", "link", "mkdir", "mknod", "removexattr", "rename",
    "rmdir", "setattr", "setxattr", "symlink", "unlink", "write",
)  # fmt: skip

for _kind in REFUSED:
    setattr(TemplateOperations, _kind, _refusing(_kind))
