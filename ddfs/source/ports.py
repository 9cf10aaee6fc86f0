"""What a source needs of those who fetch documents; handed in by whoever has the network."""

from __future__ import annotations

from typing import Protocol

from ddfs.declaration import Declaration
from ddfs.model import ByteRange, Manifest


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


class Documents(Protocol):
    """What fetches documents and small ranges; ``fetch.transport.Transport`` is one."""

    async def read_document(self, url: str, *, max_bytes: int) -> FetchedDocument:
        """The whole body; :class:`errors.MirrorError`, or DocumentError when it is larger."""

    async def size_of(self, url: str) -> int:
        """The file's size in bytes by the server's word; :class:`errors.MirrorError`."""

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
