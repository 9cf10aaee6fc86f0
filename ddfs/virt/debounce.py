"""When to look: pure, the time is an argument, in seconds of any clock that only goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# An action that takes long is in others' way: at most this part of the time, while changes
# go on and on.
_SHARE: Final = 10

# Of one action; what hung once must not put off the next for an hour.
_MOST_SECONDS: Final = 6.0


@dataclass
class Debounce:
    """Many changes become one action: *quiet* seconds after the last, *latest* after the first.

    Later where the action takes long: it waits for as long a quiet as it takes itself, and
    for ten times as long altogether.
    """

    quiet: float
    latest: float
    _cost: float = 0.0
    _first: float | None = None
    _last: float = 0.0

    def changed(self, now: float) -> None:
        """Something changed."""
        if self._first is None:
            self._first = now
        self._last = now

    @property
    def due(self) -> float:
        """When to act; infinity when there is nothing to do."""
        if self._first is None:
            return math.inf
        latest = max(self.latest, _SHARE * self._cost)
        return min(self._first + latest, self._last + max(self.quiet, self._cost))

    def taken(self) -> None:
        """The action begins: what changes from now on needs another."""
        self._first = None

    def took(self, seconds: float) -> None:
        """How long the last action took."""
        self._cost = min(seconds, _MOST_SECONDS)


@dataclass
class Pauses:
    """Pauses that double from *first* to *longest* seconds while something fails."""

    first: float
    longest: float
    _next: float = 0.0

    def failed(self) -> float:
        """The pause after one more failure."""
        pause = max(self.first, self._next)
        self._next = min(2 * pause, self.longest)
        return pause

    def succeeded(self) -> None:
        """Begin with the first again."""
        self._next = 0.0
