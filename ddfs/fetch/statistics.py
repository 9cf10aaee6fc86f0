"""Figures about a fetch, for progress bars, status and the log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MirrorStatistics:
    """One mirror in one fetch.

    ``bytes_received`` counts body bytes, wanted in the end or not. ``state`` is one of
    ``untried``, ``idle``, ``busy``, ``resting`` (asked again later) and ``out`` (not asked
    again). ``last_error`` is the text of its last failure.
    """

    url: str
    bytes_received: int
    bytes_per_second: float
    state: str
    last_error: str | None
    rejected_pieces: int


@dataclass(frozen=True, slots=True)
class TransferStatistics:
    """A fetch at one moment.

    ``bytes_verified`` counts what is here and matched its piece hash (received, where the
    document has none). ``bytes_per_second`` is the recent rate, ``seconds_left`` what that
    promises, None while nobody can tell. ``refetched_bytes`` were fetched more than once.
    """

    bytes_verified: int
    size: int
    bytes_per_second: float
    seconds_left: float | None
    mirrors: tuple[MirrorStatistics, ...]
    refetched_bytes: int


@dataclass(frozen=True, slots=True)
class TransferReport:
    """A fetch that succeeded.

    ``bytes_resumed`` were here before it began; ``comparisons`` says how often the
    whole-file hash was compared (0 without one).
    """

    size: int
    seconds: float
    bytes_resumed: int
    comparisons: int
    statistics: TransferStatistics
