"""Runs one fetch. Interface first; the body follows."""

from __future__ import annotations

from collections.abc import Callable

from ddfs.fetch.events import FetchEvent
from ddfs.fetch.statistics import MirrorStatistics, TransferReport, TransferStatistics
from ddfs.fetch.target import PieceRecord, Target
from ddfs.fetch.transport import Transport
from ddfs.model import ByteRange, Manifest

__all__ = [
    "MirrorStatistics",
    "PieceRecord",
    "Target",
    "Transfer",
    "TransferReport",
    "TransferStatistics",
]


class Transfer:
    """One fetch of one content into one target."""

    def __init__(
        self,
        manifest: Manifest,
        target: Target,
        transport: Transport,
        *,
        observer: Callable[[FetchEvent], None],
        location: str | None = None,
    ) -> None:
        raise NotImplementedError

    async def run(self) -> TransferReport:
        """Fetch until every piece and every whole-file digest of the manifest holds."""
        raise NotImplementedError

    def want(self, wanted: ByteRange) -> None:
        """A reader waits for these bytes."""
        raise NotImplementedError

    def is_verified(self, wanted: ByteRange) -> bool:
        """Whether a reader may have these bytes."""
        raise NotImplementedError

    def statistics(self) -> TransferStatistics:
        """The figures of this moment."""
        raise NotImplementedError
