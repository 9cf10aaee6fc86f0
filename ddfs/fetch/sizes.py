"""How long a run is, where in the file it lies, and which mirror is asked ahead. Pure."""

from __future__ import annotations

from typing import Final

from ddfs.fetch.mirrors import MirrorStanding
from ddfs.fetch.state import FetchState
from ddfs.model import MiB

# A run lasts about this long: short enough that the file grows from the front, long enough
# that the gap between two requests is small beside it.
RUN_SECONDS: Final = 4.0
MIN_RUN_BYTES: Final = 8 * MiB
MAX_RUN_BYTES: Final = 64 * MiB
# A mirror that was not measured yet, in a small file: every mirror gets a part.
MIN_FIRST_RUN_BYTES: Final = 2 * MiB
# The gap between two requests is one latency: at most a twentieth of a run.
RUN_LATENCIES: Final = 20.0

# A mirror with a longer latency is asked for its next run that much before this one ends, and
# a little more, on a second connection: else every run would be followed by a silence.
FAR_SECONDS: Final = 0.07
LEAD_SECONDS: Final = 0.05
MAX_LEAD_SECONDS: Final = 1.0

# Who needs longer for one piece, and twice as long as the fastest, works from the end of the
# file: the whole-file hash comes there last, and would wait for its pieces anywhere else.
BACK_SECONDS: Final = 0.5


class RunSizes(FetchState):
    """What :class:`scheduler.Scheduler` knows of a run before it gives it to a mirror."""

    def _run_bytes(self, mirror: int) -> float:
        standing = self.mirrors[mirror]
        left = self.table.free_bytes
        if standing.rate is None and standing.was_slow:
            return 0
        if standing.rate is None:
            # Half of an equal share of all that is missing; the rest is given by speed.
            missing = self.grid.size - self.table.held_bytes
            share = missing / (2 * max(1, min(self._widening.width, len(self.usable()))))
            return min(max(share, MIN_FIRST_RUN_BYTES), MAX_RUN_BYTES)
        # Where the next request is made ahead there is no gap, but an end that is hard to mend.
        works_ahead = self._works_ahead(standing)
        latency = 0.0 if works_ahead else RUN_LATENCIES * (standing.latency or 0.0)
        wanted = self._longest_run_bytes(standing.rate, latency)
        least = standing.rate * self._lead(standing) if works_ahead else MIN_RUN_BYTES
        # Towards the end half of its fair share, so that all end together and in order.
        others = self._rate_of_others(mirror)
        fair = 0.5 * left * standing.rate / (standing.rate + others) if others else left
        return min(wanted, max(fair, least, standing.rate * latency))

    @staticmethod
    def _longest_run_bytes(rate: float, latency: float) -> float:
        return min(max(rate * max(RUN_SECONDS, latency), MIN_RUN_BYTES), MAX_RUN_BYTES)

    def _contested_pieces(self, mirror: int) -> int:
        """How many contested pieces *mirror* is asked for at most.

        They come a few at a time, so that a share of them would be a request for each.
        """
        if (rate := self.mirrors[mirror].rate) is None:
            return self._run_pieces(mirror)
        return max(1, int(self._longest_run_bytes(rate, 0.0) / self.grid.piece_length))

    def _rate_of_others(self, mirror: int) -> float:
        """What all others bring, those included that are idle for this moment."""
        return sum(
            self._rate_of(self._busy[m.index]) if m.index in self._busy else m.rate or 0.0
            for m in self.mirrors[: self.lanes.width if self.lanes is not None else None]
            if m.index != mirror and m.is_usable(self._now)
        )

    def _run_pieces(self, mirror: int) -> int:
        return max(1, round(self._run_bytes(mirror) / self.grid.piece_length))

    def _run_end(self, mirror: int, first: int, end: int) -> int:
        if self.mirrors[mirror].is_rangeless:
            return end
        return min(end, first + self._run_pieces(mirror))

    def _free_for(self, mirror: int) -> tuple[int, int] | None:
        """Where *mirror* goes on in what nobody was asked for; None if there is nothing."""
        if not self._is_for_the_back(mirror):
            return self.table.free.first()
        if (interval := self.table.free.last()) is None:
            return None
        first, end = interval
        return max(first, end - self._run_pieces(mirror)), end

    def _is_for_the_back(self, mirror: int) -> bool:
        standing = self.mirrors[mirror]
        if standing.rate is None or standing.is_rangeless:
            return False
        fastest = max((self._rate_of(run) for run in self._busy.values()), default=0.0)
        is_slow = standing.rate * BACK_SECONDS < self.grid.piece_length
        return is_slow and 2 * standing.rate < fastest

    @staticmethod
    def _lead(standing: MirrorStanding) -> float:
        return min(standing.latency or 0.0, MAX_LEAD_SECONDS) + LEAD_SECONDS

    def _works_ahead(self, standing: MirrorStanding) -> bool:
        """Whether it is far away, alone on its connection, and known well enough."""
        is_single = self.lanes is None and not standing.takes_one_only
        is_far = (standing.latency or 0.0) >= FAR_SECONDS
        return is_single and is_far and standing.is_settled and not standing.is_rangeless
