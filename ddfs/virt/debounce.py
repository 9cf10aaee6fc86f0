"""When to look: pure, the time is an argument, in seconds of any clock that only goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Debounce:
    """Many changes become one action: *quiet* seconds after the last, *latest* after the first."""

    quiet: float
    latest: float
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
        return min(self._first + self.latest, self._last + self.quiet)

    def taken(self) -> None:
        """The action begins: what changes from now on needs another."""
        self._first = None


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
