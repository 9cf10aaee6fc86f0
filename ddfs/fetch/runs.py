"""A run: consecutive pieces that one mirror is asked for in one request. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ddfs.fetch.mirrors import MirrorStanding
from ddfs.model import Grid


@dataclass(frozen=True, slots=True)
class Ask:
    """Action: ask *mirror* for pieces *first* to *end* - 1 and report them as run *run*."""

    run: int
    mirror: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Trim:
    """Action: let the run end before piece *end*, and say with ``trimmed`` where it will."""

    run: int
    end: int


@dataclass(frozen=True, slots=True)
class Extend:
    """Action: let the run go on until before piece *end*."""

    run: int
    end: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Action: stop the run at once, and say with ``run_ended`` when nothing writes any more."""

    run: int
    reason: str


@dataclass(frozen=True, slots=True)
class Recheck:
    """Action: several mirrors wrote into *piece*; hash what is in the file."""

    piece: int


@dataclass(frozen=True, slots=True)
class Blame:
    """Notice: the mirror was proved to send wrong bytes and is out."""

    mirror: int
    reason: str


Action = Ask | Trim | Extend | Cancel | Recheck | Blame


@dataclass(slots=True)
class Run:
    """What one request is doing. ``position`` is the first byte that has not arrived."""

    id: int
    mirror: int
    first: int
    end: int
    next: int
    position: int
    started_at: float
    seen_at: float
    last_byte_at: float
    # What it was last asked to end before, and where it said that it cannot.
    trim_end: int = 0
    kept_end: int = 0
    wanted: int | None = None
    is_answered: bool = False
    is_trimming: bool = False
    # Others go on where it ends.
    is_cut: bool = False
    is_cancelled: bool = False
    # Its mirror is still busy with the run before.
    is_ahead: bool = False
    # Set where the cancellation is a failure of the mirror.
    cancelled_for: str | None = None

    def bytes_to(self, end: int, grid: Grid) -> int:
        """How many bytes are missing until piece *end* - 1 is complete."""
        return max(0, grid.bytes_of(end - 1).end - self.position)

    def seconds_to(
        self, end: int, grid: Grid, standing: MirrorStanding, guess: float, now: float
    ) -> float:
        """Predicted time until piece *end* - 1 is complete."""
        rate = standing.rate if standing.rate is not None else guess
        transfer = self.bytes_to(end, grid) / max(rate, 1.0)
        if self.is_answered:
            return transfer
        # Who is late will be later: beyond what it usually takes, the wait so far is the
        # best guess at the wait to come.
        waited = now - self.started_at
        usual = standing.latency if standing.latency is not None else 0.0
        return max(usual - waited, waited if waited > 2 * usual else 0.0) + transfer
