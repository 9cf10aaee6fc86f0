"""Bytes from other hosts. Interface first; the body follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ddfs.model import ByteRange


@dataclass(frozen=True)
class FetchedDocument:
    """A document that was read whole. ``url`` is where it came from after redirects."""

    data: bytes
    url: str
    content_type: str | None
    headers: Mapping[str, str]


class Transport:
    """The one owner of connections; an async context manager, one per process."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        raise NotImplementedError

    async def read_document(self, url: str, *, max_bytes: int) -> FetchedDocument:
        """The document at *url*. Raises MirrorError; DocumentError when it is larger."""
        raise NotImplementedError

    async def size_of(self, url: str) -> int:
        """How many bytes *url* has. Raises MirrorError."""
        raise NotImplementedError

    async def read_range(self, url: str, wanted: ByteRange, *, size: int | None) -> bytes:
        """Exactly the bytes *wanted* of *url*. Raises MirrorError."""
        raise NotImplementedError
