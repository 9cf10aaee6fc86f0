"""From a partial file to a published one, in steps that can each be repeated after a crash.

====== ============================================== ====================================
step   does                                           a crash behind it leaves
====== ============================================== ====================================
seal   mode 0444, fsync of the file                   the partial file, read-only
vow    writes down, durably, which inode becomes what the mark
move   renames into the pool, replacing nothing       the name; the mark says that it is ours
finish immutable flag, fsync of file and directories  everything
====== ============================================== ====================================

The mark is why a second try can tell our own file from somebody else's of that name. It
stays until the caller has its row in the catalogue and calls ``discard``.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Final

from ddfs import errors
from ddfs.model import KiB, PublishedFile
from ddfs.primary import kernel

log = logging.getLogger(__name__)

MARK_SUFFIX: Final = ".publishing"
FRESH_MARK_SUFFIX: Final = ".publishing-new"

# Documentation/arch/x86/boot.rst; initramfs-tools and dracut make cpio archives, plain or
# compressed.
_BOOT_HEAD_LENGTH: Final = 1024
_KERNEL_MAGIC_AT: Final = 0x202
_KERNEL_MAGIC: Final = b"HdrS"
_INITRD_MAGICS: Final = (
    b"070701", b"070702", b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh",
    b"\x02\x21\x4c\x18", b"\x04\x22\x4d\x18", b"\x5d\0\0", b"\x7fELF",
)  # fmt: skip

# A mark is some 300 bytes; anything longer was not written by us.
_MAX_MARK: Final = 64 * KiB


def look_at(path: Path) -> PublishedFile | None:
    """The regular file at *path*, never through a symlink; None if it is none."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return PublishedFile(
        str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    )


def is_same_file(one: PublishedFile, other: PublishedFile) -> bool:
    """Same inode number, size and time of last write.

    Not the device: its number changes at a reboot on LVM, loop and NFS.
    """
    return (one.inode, one.size, one.mtime_ns) == (other.inode, other.size, other.mtime_ns)


class Publication:
    """One publishing of *partial* as *target*. For one thread."""

    def __init__(self, partial: Path, target: Path) -> None:
        self.partial = partial
        self.target = target
        self.mark = partial.with_suffix(MARK_SUFFIX)

    def run(self) -> PublishedFile:
        """All steps that are left, whatever an earlier try has done; raises ``OSError`` and
        :class:`errors.NameTakenError`.
        """
        if look_at(self.partial) is not None:
            self.seal()
            self.vow()
            self.move()
        else:
            self.resume()
        return self.finish()

    def finish(self) -> PublishedFile:
        """The steps behind the move."""
        published = protect(self.target)
        kernel.sync_directory(self.partial.parent)
        return published

    def seal(self) -> None:
        """Mode 0444 and fsync of the partial file."""
        fd = os.open(self.partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        finally:
            os.close(fd)

    def vow(self) -> None:
        """Write the mark, durably, before the name can exist."""
        ours = look_at(self.partial)
        if ours is None:
            raise FileNotFoundError(f"{self.partial} is gone")
        text = json.dumps({**asdict(ours), "path": str(self.target)})
        fresh = self.mark.with_suffix(FRESH_MARK_SUFFIX)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.replace(fresh, self.mark)
        kernel.sync_directory(self.mark.parent)

    def move(self) -> None:
        """Give it its name, unless a file that is not ours has it."""
        if self.is_linked():
            os.unlink(self.partial)
            return
        try:
            kernel.move_no_replace(self.partial, self.target)
        except FileExistsError:
            raise errors.NameTakenError(
                f"{self.target} is there and was not put there by ddfs; move it away, or "
                "register the template under another name"
            ) from None

    def resume(self) -> None:
        """Find what an earlier try has moved; the mark has its name, which may be another."""
        promised = read_mark(self.mark)
        found = look_at(Path(promised.path)) if promised else None
        if promised is None or found is None or not is_same_file(promised, found):
            raise errors.StorageError(
                f"the partial file {self.partial} is gone; the template has to be fetched again"
            )
        self.target = Path(promised.path)

    def is_linked(self) -> bool:
        """Whether a crash fell between link() and unlink()."""
        ours, there = look_at(self.partial), look_at(self.target)
        return ours is not None and there is not None and os.path.samefile(ours.path, there.path)


def finish(partial: Path) -> PublishedFile | None:
    """Finish what was publishing *partial* if it came as far as the name; else None."""
    promised = read_mark(partial.with_suffix(MARK_SUFFIX))
    if promised is None:
        return None
    publication = Publication(partial, Path(promised.path))
    found = look_at(publication.target)
    if found is None or not is_same_file(promised, found):
        return None
    if look_at(partial) is not None:
        if not publication.is_linked():
            return None
        publication.move()
    return publication.finish()


def protect(target: Path) -> PublishedFile:
    """Mode 0444 and, where there is one, the immutable flag; all of it and the name durable."""
    fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise errors.StorageError(f"{target} is no regular file; move it away")
        if not kernel.is_immutable(fd):
            os.fchmod(fd, 0o444)
            if _is_boot_file(os.pread(fd, _BOOT_HEAD_LENGTH, 0)):
                log.info("%s: a kernel or an initrd, only its mode protects it", target)
            elif not kernel.set_immutable(fd, True):
                log.info("%s: no immutable flag here, only its mode protects it", target)
        os.fsync(fd)
    finally:
        os.close(fd)
    kernel.sync_directory(target.parent)
    published = look_at(target)
    if published is None:
        raise errors.StorageError(f"{target} was removed while it was being published")
    return published


def _is_boot_file(head: bytes) -> bool:
    """Whether *head* begins a Linux kernel, or an archive as initial RAM disks are.

    libvirt opens kernel and initrd for writing, to lock them while it notes their owner
    (virSecurityManagerMetadataLock), and refuses the domain where the flag forbids that.
    """
    has_boot_header = head[_KERNEL_MAGIC_AT:].startswith(_KERNEL_MAGIC)
    return has_boot_header or head.startswith(_INITRD_MAGICS)


def read_mark(mark: Path) -> PublishedFile | None:
    """What a try has written down, or None; an unreadable mark is none."""
    try:
        with open(mark, encoding="utf-8") as file:
            return PublishedFile(**json.loads(file.read(_MAX_MARK)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        log.warning("%s is damaged and not used", mark)
        return None


def file_name(name: str) -> str:
    """*name*, which is that of a file in a directory; raises ``ValueError``."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"not a file name: {name!r}")
    return name
