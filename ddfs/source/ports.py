"""What a source needs of those who fetch documents; handed in by whoever has the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ddfs.declaration import Declaration
from ddfs.model import ByteRange, Digest, Manifest


class FetchedDocument(Protocol):
    """A small document and where it was found."""

    @property
    def data(self) -> bytes:
        """The body."""

    @property
    def url(self) -> str:
        """Its address after redirects."""

    @property
    def content_type(self) -> str | None:
        """The Content-Type field as it came."""


class Answer(Protocol):
    """What one server on the way to a file said."""

    @property
    def url(self) -> str:
        """The address that was asked."""

    @property
    def status(self) -> int:
        """The status code."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields, names in lower case."""

    @property
    def is_whole(self) -> bool:
        """Whether its body is the whole file."""


class Look(Protocol):
    """What servers say of a file without sending it."""

    @property
    def size(self) -> int | None:
        """In bytes, if anybody says it."""

    @property
    def validator(self) -> str:
        """What changes when the file does; empty where nothing does."""

    @property
    def answers(self) -> Sequence[Answer]:
        """Redirects, then the last answer."""


class Documents(Protocol):
    """What fetches documents and small ranges; ``fetch.transport.Transport`` is one."""

    def expect(self, digests: Sequence[Digest]) -> None:
        """What the file is has been told by now: its mirrors need not be believed."""

    async def read_document(self, url: str, *, max_bytes: int) -> FetchedDocument:
        """The whole body; :class:`errors.MirrorError`, or DocumentError when it is larger."""

    async def size_of(self, url: str) -> int:
        """The file's size in bytes by the server's word; :class:`errors.MirrorError`."""

    async def look_at(self, url: str) -> Look:
        """What is said of the file at *url*; :class:`errors.MirrorError` when it is refused."""

    async def read_range(self, url: str, wanted: ByteRange, *, size: int | None) -> bytes:
        """Exactly those bytes, of a file of *size* if given; :class:`errors.MirrorError`."""


class Inquiry(Documents, Protocol):
    """Documents asked with what one declaration says about access; for that one alone."""

    def attributed(self, manifest: Manifest) -> Manifest:
        """*manifest*, which this inquiry brought, with who named each mirror."""
        ...


class Inquiries(Protocol):
    """What begins an inquiry; ``fetch.transport.Transport`` is one."""

    async def inquiry(self, declaration: Declaration) -> Inquiry:
        """For one source; :class:`errors.InvalidValueError` for a file that cannot be used."""
        ...
