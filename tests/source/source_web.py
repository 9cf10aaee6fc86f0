"""A web in memory, and manifests and metalinks of one small image."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from ddfs import errors
from ddfs.fetch.documents import Answer, Look
from ddfs.metalink import write
from ddfs.model import ByteRange, Digest, HashAlgorithm, Manifest, Mirror, PieceMap

CONTENT = bytes(range(256)) * 1024
SHA256 = Digest(HashAlgorithm.SHA256, hashlib.sha256(CONTENT).hexdigest())
MD5 = Digest(HashAlgorithm.MD5, hashlib.md5(CONTENT).hexdigest())
OTHER = Digest(HashAlgorithm.SHA256, "0" * 64)


@dataclasses.dataclass(frozen=True)
class Found:
    data: bytes
    url: str
    content_type: str | None


class Web:
    """Files by address, and a record of every request; an exception in place of a file fails."""

    def __init__(self, **files: bytes) -> None:
        self.files: dict[str, bytes | str] = {
            f"http://{host}.example/a": data for host, data in files.items()
        }
        self.types: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.without_ranges: set[str] = set()
        self.headers: dict[str, dict[str, str]] = {}
        self.requests: list[tuple[str, str]] = []
        self.expected: tuple[Digest, ...] = ()

    def _get(self, kind: str, url: str) -> bytes:
        self.requests.append((kind, url))
        data = self.files.get(url, "404 Not Found")
        if isinstance(data, str):
            raise errors.MirrorError(url, data)
        return data

    def expect(self, digests: Sequence[Digest]) -> None:
        self.expected = tuple(digests)

    async def read_document(self, url: str, *, max_bytes: int) -> Found:
        url = self.redirects.get(url, url)
        data = self._get("document", url)
        if len(data) > max_bytes:
            raise errors.DocumentError(f"more than {max_bytes} bytes")
        return Found(data, url, self.types.get(url))

    async def size_of(self, url: str) -> int:
        return len(self._get("size", url))

    async def look_at(self, url: str) -> Look:
        answers = []
        while target := self.redirects.get(url):
            answers.append(Answer(url, 302, self.headers.get(url, {}), False))
            url = target
        size = len(self._get("size", url))
        answers.append(Answer(url, 200, self.headers.get(url, {}), False))
        return Look(size, tuple(answers))

    async def read_range(self, url: str, wanted: ByteRange, *, size: int | None) -> bytes:
        data = self._get("range", url)
        if url in self.without_ranges:
            raise errors.MirrorError(url, "it answers 200 to a range")
        if wanted.end > len(data) or (size is not None and size != len(data)):
            raise errors.MirrorError(url, "it has another size")
        return data[wanted.start : wanted.end]


def manifest(
    *hosts: str,
    content: bytes = CONTENT,
    piece_length: int | None = None,
    digests: tuple[Digest, ...] | None = None,
    has_size: bool = True,
) -> Manifest:
    pieces = None
    if piece_length is not None:
        parts = [content[i : i + piece_length] for i in range(0, len(content), piece_length)]
        hashes = b"".join(hashlib.sha1(part).digest() for part in parts)
        pieces = PieceMap(HashAlgorithm.SHA1, piece_length, hashes)
    whole = Digest(HashAlgorithm.SHA256, hashlib.sha256(content).hexdigest())
    return Manifest(
        "a.img",
        len(content) if has_size else None,
        (whole,) if digests is None else digests,
        pieces,
        tuple(Mirror(f"http://{host}.example/a", n) for n, host in enumerate(hosts, start=1)),
        size_is_stated=has_size,
    )


def text(described: Manifest) -> bytes:
    return write.make(described).encode()
