"""Remembers what servers say of the documents that a source is resolved from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ddfs import source
from ddfs.declaration import Declaration
from ddfs.model import ByteRange, Digest, Manifest
from ddfs.versions import Validator, Visit

# What is kept of a field; entity tags are some 30 bytes.
_MAX_FIELD: Final = 512


class RecordedDocument(source.FetchedDocument, Protocol):
    """A document that came with header fields, their names in lower case."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The fields of the response."""


class RecordedInquiry(Protocol):
    """What fetches documents, and asks whether they have changed."""

    def expect(self, digests: Sequence[Digest]) -> None:
        """As :class:`source.Documents` has it."""

    async def read_document(self, url: str, *, max_bytes: int) -> RecordedDocument:
        """As :class:`source.Documents` has it."""

    async def size_of(self, url: str) -> int:
        """As :class:`source.Documents` has it."""

    async def read_range(self, url: str, wanted: ByteRange, *, size: int | None) -> bytes:
        """As :class:`source.Documents` has it."""

    async def look_at(self, url: str) -> Any:
        """What servers say of a file; its ``answers`` have ``headers``."""

    def attributed(self, manifest: Manifest) -> Manifest:
        """As :class:`source.Inquiry` has it."""
        ...

    async def revisit(self, before: Validator) -> Visit:
        """What the address serves now, without its body; :class:`errors.MirrorError`."""


class RecordedInquiries(Protocol):
    """What begins an inquiry."""

    async def inquiry(self, declaration: Declaration) -> RecordedInquiry:
        """As :class:`source.Inquiries` has it."""
        ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a source is, who was asked, and what servers said of the documents that say so.

    ``is_looked_at``: there was no document, and ``seen`` is of the image itself.
    """

    manifest: Manifest
    inquiry: source.Documents
    seen: tuple[Validator, ...] = ()
    is_looked_at: bool = False


class Recorder:
    """Documents for one resolving."""

    def __init__(self, documents: RecordedInquiry) -> None:
        self._documents = documents
        self._read: list[Validator] = []
        self._looked_at: list[Validator] = []

    @property
    def seen(self) -> tuple[Validator, ...]:
        """A validator of each document that was read; without any, of what was looked at."""
        return tuple(self._read or self._looked_at)

    @property
    def has_only_looked(self) -> bool:
        """Whether no document was read: nothing but its server says what the image is now."""
        return bool(self._looked_at) and not self._read

    def expect(self, digests: Sequence[Digest]) -> None:
        """Pass on."""
        self._documents.expect(digests)

    async def read_document(self, url: str, *, max_bytes: int) -> RecordedDocument:
        """Pass on, and remember."""
        found = await self._documents.read_document(url, max_bytes=max_bytes)
        self._read.append(_validator(url, found.headers))
        return found

    async def look_at(self, url: str) -> Any:
        """Pass on, and remember."""
        found = await self._documents.look_at(url)
        if found.answers:
            self._looked_at.append(_validator(url, found.answers[-1].headers, found.size))
        return found

    async def size_of(self, url: str) -> int:
        """Pass on."""
        return await self._documents.size_of(url)

    async def read_range(self, url: str, wanted: ByteRange, *, size: int | None) -> bytes:
        """Pass on."""
        return await self._documents.read_range(url, wanted, size=size)


def _validator(url: str, headers: Mapping[str, str], size: int | None = None) -> Validator:
    return Validator(url, _kept(headers.get("etag")), _kept(headers.get("last-modified")), size)


def _kept(field: str | None) -> str | None:
    """A field to send back later; one that is too long for that is none."""
    return field if field and len(field) <= _MAX_FIELD else None
