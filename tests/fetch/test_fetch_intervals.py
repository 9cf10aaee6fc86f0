from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ddfs.fetch.intervals import IntervalSet

LIMIT = 40


class IntervalMachine(RuleBasedStateMachine):
    """The same as a plain set of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.real = IntervalSet()
        self.model: set[int] = set()

    @rule(start=st.integers(0, LIMIT), length=st.integers(0, 8))
    def add(self, start, length):
        numbers = set(range(start, start + length))
        if not numbers & self.model:
            self.real.add(start, start + length)
            self.model |= numbers

    @rule(start=st.integers(0, LIMIT), length=st.integers(1, 8))
    def remove(self, start, length):
        numbers = set(range(start, start + length))
        if numbers <= self.model:
            self.real.remove(start, start + length)
            self.model -= numbers
        else:
            with pytest.raises(ValueError):
                self.real.remove(start, start + length)

    @invariant()
    def is_the_same(self):
        intervals = list(self.real)
        assert {n for a, b in intervals for n in range(a, b)} == self.model
        assert self.real.total == len(self.model) == sum(b - a for a, b in intervals)
        assert bool(self.real) == bool(self.model)
        assert all(a < b for a, b in intervals)
        assert all(b < c for (_, b), (c, _) in itertools.pairwise(intervals))
        assert self.real.first() == (intervals[0] if intervals else None)
        for number in range(LIMIT + 9):
            assert (number in self.real) == (number in self.model)
            rest = self.real.at(number)
            assert (rest is not None) == (number in self.model)
            if rest is not None:
                assert set(range(*rest)) <= self.model
                assert rest[1] not in self.model


TestIntervals = IntervalMachine.TestCase
