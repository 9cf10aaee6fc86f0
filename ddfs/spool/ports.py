"""What the spool asks of those who stand beside it; ``daemon.py`` hands them in.

Everything here blocks and is called in threads, but for :class:`Heads`, whose files are
small and local, and :meth:`Storage.note_written`, which only counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ddfs.model import (
    ByteRange,
    Digest,
    ImageFormat,
    Manifest,
    Packing,
    PublishedFile,
    SpoolReference,
)


class Storage(Protocol):
    """A primary storage."""

    @property
    def name(self) -> str:
        """What the settings call it."""

    @property
    def path(self) -> Path:
        """The directory in which complete files stand."""

    def partial_path(self, content_id: str) -> Path:
        """Where the data of an unfinished content goes; a rename away from ``path``."""

    def journal_path(self, content_id: str) -> Path:
        """Where its journal goes."""

    def unpacked_path(self, content_id: str) -> Path:
        """Where what comes out of a packed content goes, until it is published."""

    def publish(self, partial: Path, name: str) -> PublishedFile:
        """Give *partial* its *name*, read-only; repeatable after a crash at any point.

        Raises :class:`ddfs.errors.NameTakenError` when a file that is not ours has the name.
        """

    def finish_publishing(self, content_id: str) -> PublishedFile | None:
        """What a crash interrupted in :meth:`publish` after the rename, finished, or what could not
        be seen for a while; else None.
        """

    def adopt(self, name: str) -> PublishedFile:
        """Treat the file that has *name* already as published: read-only, durable."""

    def claim(self, content_id: str, /) -> bool:
        """Whether this host may fetch it; where hosts share the storage, one at a time may."""

    def holder(self, content_id: str, /) -> str | None:
        """Where :meth:`claim` says no: the name of the host that has it, None if unknown."""

    def disclaim(self, content_id: str, /) -> None:
        """Let others fetch it; not claimed is fine."""

    def say(self, content_id: str, size: int, digest: Digest, /) -> None:
        """Tell the hosts that share it, if any do, what a content turned out to be."""

    def said_of(self, content_id: str, /) -> tuple[int, Digest] | None:
        """What one of them has said: the size and the hash of what is published."""

    def discard(self, content_id: str) -> None:
        """Remove the partial file, its journal and all else that is kept of a fetch."""

    def identify(self, path: Path) -> PublishedFile | None:
        """What stands at *path*: a regular file, or None."""

    def files_of_size(self, size: int) -> list[Path]:
        """Some of the files in :attr:`path` that have that size."""

    def is_intact(self, published: PublishedFile) -> bool:
        """Whether the file is still the one that was published."""

    def located(self, published: PublishedFile, /) -> PublishedFile:
        """An intact one as it is found now: device numbers change at a reboot."""

    def mend(self, published: PublishedFile, source: int, ranges: Sequence[ByteRange], /) -> None:
        """Write verified bytes into it, in place; *source* has them at the same places."""

    def purge(self, published: PublishedFile) -> None:
        """Delete it."""

    def reserve(self, content_id: str, length: int, /) -> None:
        """Set *length* bytes aside, or raise :class:`ddfs.errors.StorageFullError`."""

    def note_written(self, content_id: str, length: int, /) -> None:
        """Say that *length* bytes of the reservation are on the disk by now."""

    def release(self, content_id: str) -> None:
        """Give the rest of a reservation back; without one, nothing happens."""


class Ledger(Protocol):
    """The catalogue, as far as the spool needs it."""

    def manifest(self, content_id: str) -> Manifest:
        """The manifest of a content; :class:`ddfs.errors.UnknownTemplateError`."""

    def record_unpacked(self, content_id: str, size: int, sha256: str) -> None:
        """Write down what came out of a packed content."""

    def pin(self, content_id: str, digest: Digest) -> None:
        """Write down what the bytes of an unverified content are, for ever."""

    def references(self) -> list[SpoolReference]:
        """All references."""

    def record_reference(self, reference: SpoolReference) -> None:
        """Write or replace the reference of a content on a primary storage."""

    def forget_reference(self, content_id: str, primary: str) -> None:
        """Delete that reference."""


class Inspector(Protocol):
    """Refuses images; raises :class:`ddfs.errors.ImageError`."""

    def inspect_head(self, data: bytes, size: int, claimed: ImageFormat) -> None:
        """Look at the first bytes of an image of *size* bytes."""

    def inspect_file(self, path: Path, claimed: ImageFormat) -> None:
        """Look at a whole image."""


class Unpacked(Protocol):
    """What came out of a packed image."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def sha256(self) -> str:
        """In hexadecimal."""


class Unpack(Protocol):
    """Writes what comes out of a packed file into an empty one; blocks, in a thread.

    Raises :class:`ddfs.errors.ImageError`, :class:`ddfs.errors.ChecksumError`, ``OSError``,
    and what *need_room* (told the size that the file is going to have) and *check* raise.
    """

    def __call__(
        self,
        packed_fd: int,
        target_fd: int,
        packing: Packing,
        *,
        need_room: Callable[[int], None],
        check: Callable[[], None],
    ) -> Unpacked:
        """What came out."""
        ...


class Judge(Protocol):
    """Says whether a complete file is signed as those want it who ask for it."""

    def is_asked_for(self, content_id: str, /) -> bool:
        """Whether a content has to be signed; from memory."""
        ...

    async def judge(self, content_id: str, image: Path, /) -> None:
        """Raises :class:`ddfs.errors.SignatureError` for a file (as mirrors have it) that is not
        signed as is asked for at this moment.
        """


class Heads(Protocol):
    """The stored heads of images."""

    def put(self, content_id: str, data: bytes) -> None:
        """Store or replace a head."""

    def read(self, content_id: str, offset: int, length: int) -> bytes:
        """Bytes of a stored head; empty where there is none."""
