"""Where a fetch puts its bytes. The spool's partial file is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Protocol


@dataclass(frozen=True, slots=True)
class PieceRecord:
    """A piece that is on disk, and who sent it.

    ``sha256`` is our own hash of the bytes as they arrived. It is empty where the document
    has piece hashes, since those were compared.
    """

    piece: int
    mirror_url: str
    sha256: bytes


class Target(Protocol):
    """A partial file with a journal of its pieces.

    One fetch has it at a time. ``fd`` is open for reading and writing; the fetch uses
    ``pwrite`` and ``pread`` at piece offsets from several threads, and never writes behind
    the manifest's size. It neither sets the file's size nor closes ``fd``.
    """

    @property
    def fd(self) -> int:
        """Descriptor of the partial file."""
        ...

    @property
    def has_journaled(self) -> bool:
        """Whether the file has the bytes of what earlier runs committed, or only their word."""
        ...

    def journaled(self) -> Sequence[PieceRecord]:
        """What earlier runs committed and nobody forgot; asked once, at the start."""
        ...

    async def commit(self, records: Sequence[PieceRecord]) -> None:
        """Make the pieces' data durable, then the journal that says so.

        Durable on return. Committing a record again is harmless. Raises
        :class:`errors.StorageFullError` or :class:`errors.StorageError`.
        """
        ...

    async def note(self, records: Sequence[PieceRecord]) -> None:
        """Remember that the pieces are in the file, as long as this host does not crash.

        For pieces that nothing but their record tells from rubbish: they count as journaled
        for whoever comes after a process that was killed. Same errors as :meth:`commit`.
        """
        ...

    async def forget(self, pieces: Sequence[int]) -> None:
        """Journal that *pieces* are not to be trusted. Same errors as :meth:`commit`."""
        ...

    def open_aside(self) -> IO[bytes]:
        """A new file on the same file system, which is gone when it is closed. Blocks.

        It need not be durable. Raises OSError.
        """
        ...
