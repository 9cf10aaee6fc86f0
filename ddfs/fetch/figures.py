"""The figures of a fetch that runs, out of its scheduler and its connections."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ddfs.fetch.mirrors import MirrorStanding
from ddfs.fetch.scheduler import Scheduler
from ddfs.fetch.segment import Segment
from ddfs.fetch.statistics import MirrorStatistics, TransferStatistics
from ddfs.model import Mirror


def figures(
    scheduler: Scheduler,
    mirrors: Sequence[Mirror],
    segments: Collection[tuple[int, Segment]],
    ended: Sequence[int],
    resumed: int,
    now: float,
) -> TransferStatistics:
    """*segments* are what runs, each with the index of its mirror; *ended* are the bytes of
    each mirror that others had brought; *resumed* bytes were here before.
    """
    table, received = scheduler.table, list(ended)
    partial = 0
    for mirror, segment in segments:
        received[mirror] += segment.received
        partial += segment.position % scheduler.grid.piece_length
    busy = {mirror for mirror, _ in segments}
    return TransferStatistics(
        bytes_verified=table.held_bytes,
        size=scheduler.grid.size,
        bytes_per_second=scheduler.rate,
        seconds_left=scheduler.seconds_left(),
        mirrors=tuple(
            _describe(scheduler, standing, mirror, count, is_busy=standing.index in busy, now=now)
            for standing, mirror, count in zip(scheduler.mirrors, mirrors, received, strict=False)
        ),
        refetched_bytes=max(0, sum(received) - (table.held_bytes - resumed) - partial),
    )


def _describe(
    scheduler: Scheduler,
    standing: MirrorStanding,
    mirror: Mirror,
    received: int,
    *,
    is_busy: bool,
    now: float,
) -> MirrorStatistics:
    rate = scheduler.rate if scheduler.lanes is not None else standing.rate
    return MirrorStatistics(
        url=mirror.url,
        bytes_received=received,
        bytes_per_second=(rate or 0.0) if is_busy else 0.0,
        state="busy" if is_busy and standing.out is None else standing.state(now),
        last_error=standing.last_error,
        rejected_pieces=standing.rejected,
    )
