"""How many connections to one mirror, where it is the only one. Pure.

A mirror that is far away, or that limits each connection, sends more over several; any
other one sends the same over one, and more of them only take room from others (RFC 9112
section 9.4). So a few more are tried once the rate is known, kept if the sum grew, and
closed if it did not. A server that refuses some gets as many as it took before.
"""

from __future__ import annotations

from typing import Final

# Two, four, eight: more than browsers use (6) is not needed to fill any link seen.
MAX_LANES: Final = 8

# A trial lasts so long: TCP's slow start at 200 ms is over, and the rate's memory with it.
TRIAL_SECONDS: Final = 2.0
# Less growth than this is the noise of a link that others use too.
GAIN: Final = 1.2
# What is nearly here is not worth a connection.
MIN_SECONDS_LEFT: Final = 4.0


class Lanes:
    """``width`` is the number of connections to use now, at least one."""

    def __init__(self, limit: int = MAX_LANES) -> None:
        self.limit = limit
        self.width = 1
        self._proven = 1
        self._base = 0.0
        self._changed_at: float | None = None
        self._is_settled = limit == 1

    def consider(
        self, now: float, *, rate: float, measured: bool, seconds_left: float | None
    ) -> None:
        """Judge the last trial, and begin another. *rate* is the sum of all connections.

        *measured* says that each of them has been watched long enough.
        """
        if self._is_settled:
            return
        if self._changed_at is None:
            self._changed_at = now
        if not measured or now - self._changed_at < TRIAL_SECONDS:
            return
        if self.width > self._proven:
            if rate < GAIN * self._base:
                self.width, self._is_settled = self._proven, True
                return
            self._proven = self.width
        if self._proven == self.limit:
            self._is_settled = True
        elif seconds_left is not None and seconds_left >= MIN_SECONDS_LEFT:
            self._base, self._changed_at = rate, now
            self.width = min(self.limit, 2 * self._proven)

    def refused(self, index: int) -> None:
        """The server refused connection number *index* while it had others."""
        if index < self.width:
            self.width = self._proven if self.width > self._proven else 1
            self._proven, self._is_settled = self.width, True
