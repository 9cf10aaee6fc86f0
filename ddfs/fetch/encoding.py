"""Content codings (RFC 9110 section 8.4), which are never asked for.

Some servers pack documents all the same, whoever asks for what. gzip is undone, within the
limit that the document has; httpx would undo any number of codings, one in the other, with
no limit: 1,100 bytes came out as 600 MiB.
"""

from __future__ import annotations

import zlib
from typing import Final

from ddfs import errors

# Sent with every request that is not a fetch's own.
IDENTITY: Final = {"Accept-Encoding": "identity"}

# zlib.h, inflateInit2: a gzip header, and the largest window.
_GZIP_WINDOW: Final = 31


class Body:
    """The bytes of one response to its document, of which there are *max_bytes* at most."""

    def __init__(self, url: str, encoding: str, max_bytes: int) -> None:
        """*encoding* is the response's Content-Encoding; :class:`errors.MirrorError`."""
        self.data = bytearray()
        self._url = url
        self._max_bytes = max_bytes
        self._inflater = None
        if encoding.strip().lower() in ("gzip", "x-gzip"):
            self._inflater = zlib.decompressobj(_GZIP_WINDOW)
        elif encoding.strip().lower() not in ("", "identity"):
            raise errors.MirrorError(
                url, f"sends it encoded ({encoding[:40]!r}), which it was not asked for"
            )

    def take(self, part: bytes) -> None:
        """Raises :class:`errors.DocumentError` when it is too large."""
        if self._inflater is None:
            self.data += part
        else:
            # One more than it may have: what is left over then need not be kept.
            room = self._max_bytes + 1 - len(self.data)
            try:
                self.data += self._inflater.decompress(part, room)
            except zlib.error as error:
                raise errors.MirrorError(self._url, f"sends broken gzip ({error})") from None
            if self._inflater.unused_data:
                raise errors.MirrorError(self._url, "sends more behind its gzip")
        if len(self.data) > self._max_bytes:
            raise errors.DocumentError(
                f"{self._url}: larger than the {self._max_bytes} bytes that it may have"
            )

    def whole(self) -> bytes:
        """What came, once nothing comes any more."""
        if self._inflater is not None and not self._inflater.eof:
            raise errors.MirrorError(self._url, "sends gzip that is cut off")
        return bytes(self.data)
