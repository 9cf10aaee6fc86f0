"""One verified download without a daemon: what ``ddfs fetch`` does.

The data grows beside the destination, in ``.NAME.ddfs-part`` with its journal
``.NAME.ddfs-journal``, so that an interrupted download goes on and nothing unverified ever
stands under the final name.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from ddfs import errors
from ddfs.fetch.access import Grants
from ddfs.fetch.events import FetchEvent
from ddfs.fetch.transfer import Transfer, TransferReport
from ddfs.fetch.transport import Transport
from ddfs.model import Digest, Manifest
from ddfs.spool import pin
from ddfs.spool.beside import beside
from ddfs.spool.journal import sync_directory
from ddfs.spool.partial import PartialFile, set_aside, storage_errors
from ddfs.spool.regain import regain
from ddfs.spool.seed import plant

# The data of a download is readable by its owner until it is verified; then by whom the
# umask allows, as with any file that a program makes.
_FINAL_MODE = 0o666


async def download(
    manifest: Manifest,
    destination: Path,
    *,
    transport: Transport,
    observer: Callable[[FetchEvent], None],
    started: Callable[[Transfer], None],
    location: str | None = None,
    seeds: Sequence[Path] = (),
    grants: Grants | None = None,
    pinned: Callable[[Digest], None] | None = None,
    judge: Callable[[Path], Awaitable[None]] | None = None,
) -> TransferReport:
    """Fetch *manifest* into *destination*, which must not exist.

    What *seeds* have of it is not asked of any mirror (:mod:`ddfs.spool.seed`), nor what an
    unfinished download of another content under this name left behind.
    *grants* are with what each origin is asked.
    ``started`` gets the transfer before its first request, for whoever shows progress.
    ``pinned`` gets the SHA-256 of what no hash verified. ``judge`` refuses the complete file
    if it is not signed as *manifest* has it; it has to be there if that has a signature.
    Failed or cancelled, the partial file stays and the next call goes on from it.
    Raises what :meth:`ddfs.fetch.transfer.Transfer.run` raises, and
    :class:`errors.NameTakenError`, :class:`errors.StorageError`,
    :class:`errors.StorageFullError`, :class:`errors.AlreadyRunningError`.
    """
    if manifest.signature is not None and judge is None:
        raise ValueError("a signature, and nobody to judge by it")
    _refuse_existing(destination)
    partial = await trio.to_thread.run_sync(_open, destination, manifest)
    try:
        _refuse_without_room(destination, manifest, partial)
        await regain(partial, manifest)
        older = beside(destination, "older")
        await plant(partial, manifest, (*seeds, older) if older.is_file() else seeds)
        older.unlink(missing_ok=True)
        transfer = Transfer(
            manifest, partial, transport, observer=observer, location=location, grants=grants
        )
        started(transfer)
        async with pin.watched(manifest, partial, transport, grants):
            report = await transfer.run()
        if judge is not None:
            await judge(Path(f"/proc/self/fd/{partial.fd}"))
        if manifest.is_unpinned:
            digest = await pin.pin(manifest, partial, transport, grants)
            if pinned is not None:
                pinned(digest)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_finish, partial, report.size, destination)
    finally:
        partial.close()
    return report


def _open(destination: Path, manifest: Manifest) -> PartialFile:
    path, journal = beside(destination, "part"), beside(destination, "journal")
    if manifest.pieces is not None:
        with storage_errors(path):
            set_aside(path, journal, manifest, beside(destination, "older"))
    if manifest.is_unpinned:
        pin.start_over(path, journal)
    return PartialFile.open(path, journal, manifest)


def _refuse_existing(destination: Path) -> None:
    if destination.is_dir():
        raise errors.InvalidValueError(f"{destination}: is a directory; name a file in it")
    if os.path.lexists(destination):
        raise errors.NameTakenError(f"{destination}: exists already, and is not overwritten")
    if not destination.parent.is_dir():
        raise errors.InvalidValueError(f"{destination.parent}: no such directory")


def _refuse_without_room(destination: Path, manifest: Manifest, partial: PartialFile) -> None:
    with storage_errors(destination):
        room = os.statvfs(destination.parent)
    free = room.f_bavail * room.f_frsize
    missing = (manifest.size or 0) - partial.bytes_here - free
    if missing > 0:
        raise errors.StorageFullError(
            f"{destination.parent}: {missing} bytes too little room; free some, then try again"
        )


def _finish(partial: PartialFile, size: int, destination: Path) -> None:
    """Durable data, then its name, which is taken from nobody, then no journal."""
    umask = os.umask(0)
    os.umask(umask)
    with storage_errors(destination):
        os.fchmod(partial.fd, _FINAL_MODE & ~umask)
        os.fsync(partial.fd)
        if not _is_still_at(partial.path, partial.fd) or os.fstat(partial.fd).st_size != size:
            raise errors.StorageError(
                f"{partial.path}: was deleted or replaced or cut off while it was written; "
                "fetch again"
            )
        _rename_without_replacing(partial, destination)
        sync_directory(destination.parent)
        partial.discard_journal()


def _is_still_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _rename_without_replacing(partial: PartialFile, destination: Path) -> None:
    """Rename, refusing to replace: link() fails where the name is taken.

    What is linked is the open file, whose bytes were verified, whatever its name is by now.

    File systems without hard links (FAT, some network file systems) get a check and a
    rename, which leaves a moment in which somebody else's new file could be replaced.
    """
    path = partial.path
    try:
        # With a directory given, Python calls linkat(), which can follow that link.
        os.link(f"/proc/self/fd/{partial.fd}", destination, src_dir_fd=partial.fd)
    except FileExistsError:
        raise errors.NameTakenError(
            f"{destination}: exists by now, and is not overwritten; the data is in {path}"
        ) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.lexists(destination):
            raise errors.NameTakenError(f"{destination}: exists by now") from None
        path.rename(destination)
        return
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
