"""Which state every piece is in. Pure.

A piece is in exactly one state. ``FREE`` pieces stand in an interval set, contested ones
(sent wrong by somebody, or to be fetched again elsewhere) in another, with the mirrors that
had their try.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ddfs.fetch.intervals import IntervalSet
from ddfs.model import Grid

FREE: Final = 0
ASKED: Final = 1
CHECKING: Final = 2
HELD: Final = 3
CONTESTED: Final = 4

# Mirrors that sent the same wrong bytes until the document is taken to be wrong: two may
# have copied from the same broken place, four have not.
MAX_AGREEING: Final = 4
# How often one mirror is asked for a piece that it sent wrong, when nobody else is left.
MAX_TRIES: Final = 3


@dataclass(slots=True)
class Contest:
    """A piece that somebody sent wrong: who tried it how often, and what they sent."""

    tries: dict[int, int] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)

    @property
    def agreeing(self) -> int:
        """The largest number of mirrors that sent the same wrong bytes."""
        values = list(self.digests.values())
        return max((values.count(value) for value in values), default=0)

    def is_open_to(self, mirror: int, rivals: Iterable[int]) -> bool:
        """Whether *mirror* may try: none of *rivals* has tried less often, and not for ever."""
        mine = self.tries.get(mirror, 0)
        return mine < MAX_TRIES and all(self.tries.get(other, 0) >= mine for other in rivals)


class PieceTable:
    """The states of all pieces, and the sets to choose from."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.states = bytearray(grid.count)
        self.free = IntervalSet()
        self.free.add(0, grid.count)
        self.contested = IntervalSet()
        self.contests: dict[int, Contest] = {}
        self.held_bytes = 0
        self.held_count = 0

    @property
    def is_complete(self) -> bool:
        """Whether every piece is held."""
        return self.held_count == self.grid.count

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody was asked for, nearly (the last piece counts as a whole one)."""
        return (self.free.total + self.contested.total) * self.grid.piece_length

    def length(self, piece: int) -> int:
        """Bytes in *piece*."""
        start = piece * self.grid.piece_length
        return min(self.grid.piece_length, self.grid.size - start)

    def take(self, first: int, end: int) -> None:
        """FREE or CONTESTED pieces become ASKED."""
        for at in range(first, end):
            if self.states[at] == CONTESTED:
                self.contested.remove(at, at + 1)
            elif self.states[at] == FREE:
                self.free.remove(at, at + 1)
            else:
                raise RuntimeError(f"piece {at} is in state {self.states[at]}, not to be taken")
            self.states[at] = ASKED

    def take_free(self, first: int, end: int) -> None:
        """FREE pieces become ASKED, all at once."""
        self.free.remove(first, end)
        self.states[first:end] = bytes([ASKED]) * (end - first)

    def release(self, first: int, end: int) -> None:
        """ASKED pieces that will not come from there become FREE or CONTESTED again."""
        start = first
        for at in range(first, end) if self.contests else ():
            if at in self.contests:
                self._release_free(start, at)
                self.states[at] = CONTESTED
                self.contested.add(at, at + 1)
                start = at + 1
        self._release_free(start, end)

    def _release_free(self, first: int, end: int) -> None:
        if first < end:
            self.free.add(first, end)
            self.states[first:end] = bytes(end - first)

    def hold(self, piece: int) -> None:
        """An ASKED or CHECKING piece is in the file and right."""
        self.states[piece] = HELD
        self.held_bytes += self.length(piece)
        self.held_count += 1

    def hold_free(self, piece: int) -> None:
        """A FREE piece is known to be in the file from an earlier run."""
        self.free.remove(piece, piece + 1)
        self.hold(piece)

    def contest(self, piece: int) -> Contest:
        """The contest about *piece*, opened where there is none."""
        return self.contests.setdefault(piece, Contest())

    def reopen(self, piece: int) -> None:
        """A HELD piece is to be fetched again."""
        self.held_bytes -= self.length(piece)
        self.held_count -= 1
        self.states[piece] = ASKED
        self.release(piece, piece + 1)
