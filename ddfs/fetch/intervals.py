"""Sets of piece numbers as sorted, disjoint intervals. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


class IntervalSet:
    """Half-open intervals, merged where they touch.

    Kept from the highest to the lowest start, so that taking from the front of the file is
    a pop from a list's end: cheap however many intervals a resumed fetch begins with.
    """

    def __init__(self) -> None:
        # Negative starts, so that the list ascends and bisect works on it.
        self._keys: list[int] = []
        self._ends: list[int] = []
        self._total = 0

    @property
    def total(self) -> int:
        """How many numbers are in the set."""
        return self._total

    def __bool__(self) -> bool:
        return self._total > 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for at in range(len(self._keys) - 1, -1, -1):
            yield -self._keys[at], self._ends[at]

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._keys, -number)
        return at < len(self._keys) and number < self._ends[at]

    def first(self) -> tuple[int, int] | None:
        """The lowest interval."""
        return (-self._keys[-1], self._ends[-1]) if self._keys else None

    def last(self) -> tuple[int, int] | None:
        """The highest interval."""
        return (-self._keys[0], self._ends[0]) if self._keys else None

    def at(self, number: int) -> tuple[int, int] | None:
        """What is left, from *number* on, of the interval that holds it."""
        at = bisect_left(self._keys, -number)
        if at < len(self._keys) and number < self._ends[at]:
            return number, self._ends[at]
        return None

    def add(self, start: int, end: int) -> None:
        """Put in *start* to *end* - 1, none of which may be there yet."""
        if start >= end:
            return
        keys, ends = self._keys, self._ends
        at = bisect_left(keys, -start)  # at: first interval that starts at or before start
        self._total += end - start
        if at > 0 and -keys[at - 1] == end:
            end = ends[at - 1]
            at -= 1
            del keys[at], ends[at]
        if at < len(keys) and ends[at] == start:
            ends[at] = end
        else:
            keys.insert(at, -start)
            ends.insert(at, end)

    def remove(self, start: int, end: int) -> None:
        """Take out *start* to *end* - 1, which must lie in one interval."""
        at = bisect_left(self._keys, -start)
        if at >= len(self._keys) or end > self._ends[at] or start >= end:
            raise ValueError(f"{start} to {end} is not in the set")
        first, last = -self._keys[at], self._ends[at]
        self._total -= end - start
        del self._keys[at], self._ends[at]
        if end < last:
            self._keys.insert(at, -end)
            self._ends.insert(at, last)
            at += 1
        if first < start:
            self._keys.insert(at, -first)
            self._ends.insert(at, start)
