"""A partial file with a journal in memory, and what a fetch into it takes. Honest and small."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import trio

from ddfs.fetch.access import Grants
from ddfs.fetch.events import FetchEvent
from ddfs.fetch.transfer import PieceRecord, Transfer, TransferReport
from ddfs.fetch.transport import Transport
from ddfs.model import Digest, HashAlgorithm, Manifest, MiB, Mirror, PieceMap


class FileTarget:
    """Implements Target over a real file. ``commits`` holds the records of each commit."""

    def __init__(self, path: Path, journal: dict[int, PieceRecord] | None = None) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.journal = journal if journal is not None else {}
        self.commits: list[list[int]] = []
        self.error: Exception | None = None
        self.opened_aside = 0
        self.has_journaled = True

    def journaled(self) -> Sequence[PieceRecord]:
        return list(self.journal.values())

    async def commit(self, records: Sequence[PieceRecord]) -> None:
        if self.error is not None:
            raise self.error
        await trio.to_thread.run_sync(os.fdatasync, self.fd)
        self.journal.update({record.piece: record for record in records})
        self.commits.append([record.piece for record in records])

    async def note(self, records: Sequence[PieceRecord]) -> None:
        await trio.lowlevel.checkpoint()

    async def forget(self, pieces: Sequence[int]) -> None:
        await trio.lowlevel.checkpoint()
        for piece in pieces:
            self.journal.pop(piece, None)

    def open_aside(self) -> IO[bytes]:
        self.opened_aside += 1
        return tempfile.TemporaryFile(dir=self.path.parent, buffering=0)

    def content(self) -> bytes:
        return self.path.read_bytes()


@contextmanager
def file_target(path: Path, journal: dict[int, PieceRecord] | None = None) -> Iterator[FileTarget]:
    target = FileTarget(path, journal)
    try:
        yield target
    finally:
        os.close(target.fd)


def random_bytes(size: int, seed: int = 7) -> bytes:
    return random.Random(seed).randbytes(size)


def manifest_of(
    content: bytes,
    urls: Sequence[str],
    *,
    piece_length: int | None = MiB,
    whole: bool = True,
    algorithm: HashAlgorithm = HashAlgorithm.SHA256,
) -> Manifest:
    """What a document about *content* would say."""
    pieces = None
    if piece_length is not None:
        parts = (content[i : i + piece_length] for i in range(0, len(content), piece_length))
        hashed = []
        for part in parts:
            hasher = algorithm.hasher()
            hasher.update(part)
            hashed.append(hasher.digest())
        pieces = PieceMap(algorithm, piece_length, b"".join(hashed))
    digest = Digest(HashAlgorithm.SHA256, hashlib.sha256(content).hexdigest())
    return Manifest(
        name="image.img",
        size=len(content),
        digests=(digest,) if whole else (),
        pieces=pieces,
        mirrors=tuple(Mirror(url, priority=at + 1) for at, url in enumerate(urls)),
    )


@dataclass
class Fetched:
    report: TransferReport
    content: bytes
    events: list[FetchEvent]
    journal: dict[int, PieceRecord]

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


@dataclass
class Failed:
    error: Exception
    events: list[FetchEvent] = field(default_factory=list)


async def fetch(
    manifest: Manifest,
    path: Path,
    *,
    journal: dict[int, PieceRecord] | None = None,
    limit: float = 200.0,
    events: list[FetchEvent] | None = None,
    transport: Transport | None = None,
    grants: Grants | None = None,
) -> Fetched:
    """Fetch into *path*; the test fails when it takes longer than *limit* seconds."""
    seen: list[FetchEvent] = events if events is not None else []
    with file_target(path, journal) as target:
        async with transport or Transport() as used:
            transfer = Transfer(manifest, target, used, observer=seen.append, grants=grants)
            with trio.fail_after(limit):
                report = await transfer.run()
        return Fetched(report, target.content(), seen, target.journal)
