"""Which mirror lied, when the whole file is wrong and no piece hash says where. Pure.

Every piece came with our own hash and the mirror that sent it. All is fetched a second time
from another mirror, a few pieces of each first and then more at a time. Where two mirrors
differ a third decides; the loser is a suspect, and what else came from it is fetched
elsewhere at once, instead of the rest. If all agree, everything is fetched a third time from
those who were not asked yet.

A majority is a guess: two mirrors may have copied from the same broken place. Where there is
none, as between two mirrors, or the file is wrong with its bytes, the file is taken from one
mirror alone after the other. Only a whole-file hash that matches proves who lied.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

# Of each mirror so many pieces are fetched again at first, and then twice as many each time:
# who lies everywhere is found at once, and who hardly lies in few requests.
FIRST_PIECES: Final = 2
MOST_PIECES: Final = 16

# Mirrors that the file is taken from alone, one after the other: each may cost the whole file
# once more, and where four are wrong, more likely the checksum is.
MAX_ALONE: Final = 4

# Sent by nobody that this fetch knows: an earlier run had another list of mirrors.
UNKNOWN: Final = -1

Plan = dict[int, frozenset[int]]


class Inquest:
    """*sources* and *digests* say who sent each piece and what arrived; kept up to date.

    ``suspects`` were outvoted, or nobody yet. ``hearsay`` are pieces of which only a disk, which
    may have changed them, says what their mirror sent.
    """

    def __init__(self, sources: Sequence[int], digests: Sequence[bytes]) -> None:
        self.sources = list(sources)
        self.digests = list(digests)
        self.suspects: set[int] = set()
        self.hearsay: dict[int, int] = {}
        self.has_news = False
        self._opinions: dict[int, dict[int, bytes]] = {}
        self._settled: set[int] = set()
        self._undecided: set[int] = set()
        self._alone: list[int] = []
        # How often a mirror agreed with a file that was wrong, where others did not.
        self._doubts: Counter[int] = Counter()
        # What is still to be fetched again, some of each mirror at a time, and what is now.
        self._rounds: deque[list[int]] = deque()
        self._awaited: set[int] = set()
        self._round_size = 0
        self._stage = 0

    def plan(self, usable: Sequence[int]) -> Plan:
        """Pieces to fetch again, each with the mirrors not to ask.

        Empty: nothing more to learn before the whole file is compared again, which makes
        sense only if ``has_news``.
        """
        if self._alone:
            return {} if self.has_news else self._take_alone(usable)
        self._awaited.clear()
        trusted = [m for m in usable if m not in self.suspects]
        plan = self._from_suspects() if trusted else {}
        # Two can only contradict each other.
        is_undecided = bool(self._undecided) or (self._stage == 0 and len(usable) == 2)
        if not plan and is_undecided and not self.suspects:
            return self._take_alone(usable)
        if plan or self.has_news:
            return plan
        # A majority of two was wrong: asking them once more says nothing.
        if self._stage <= 1 and not (self.suspects and len(trusted) <= 2):
            self._stage = 2
            self._rounds = self._in_rounds()
            plan = self._next_round()
        if not plan and self.contradicting:
            return self._take_alone(usable)
        if not plan and self._stage == 2:
            # All agree. Who was not asked for a piece yet may know better.
            self._stage = 3
            plan = self._ask_the_silent(usable)
        return plan

    def heard(self, piece: int, mirror: int, digest: bytes, usable: Sequence[int]) -> Plan:
        """*mirror* sent *piece* again. Returns what has to be fetched at once because of it."""
        opinions = self._opinions.setdefault(piece, {self.sources[piece]: self.digests[piece]})
        if digest != self.digests[piece]:
            self.has_news = True
        self.sources[piece], self.digests[piece] = mirror, digest
        if self.hearsay.get(piece) == mirror:
            del self.hearsay[piece]
        self._awaited.discard(piece)
        opinions[mirror] = digest
        if self._alone:
            return {}
        # What a suspect says counts neither for nor against anybody.
        others = {d for m, d in opinions.items() if m != mirror and m not in self.suspects}
        suspects = len(self.suspects)
        if mirror not in self.suspects and digest in others:
            self._settle(piece, digest)
        elif mirror in self.suspects or others:
            silent = [m for m in usable if m not in opinions and m not in self.suspects]
            if silent:
                self._awaited.add(piece)
                return {piece: frozenset(opinions)}
            self._undecided.add(piece)
        if len(self.suspects) > suspects:
            self._rounds.clear()
            plan = self._from_suspects() if set(usable) - self.suspects else {}
            self._awaited |= plan.keys()
            return plan
        is_low = 2 * len(self._awaited) <= self._round_size
        return {} if self._undecided or not is_low else self._next_round()

    def compared(self) -> None:
        """The whole file was compared and is still wrong."""
        self.has_news = False
        self._stage = 1 if self._stage < 3 else 3
        for piece, opinions in self._disputes():
            self._doubts.update(m for m, d in opinions.items() if d == self.digests[piece])

    def _settle(self, piece: int, digest: bytes) -> None:
        self._settled.add(piece)
        self._undecided.discard(piece)
        for other, theirs in self._opinions[piece].items():
            if theirs != digest and other != UNKNOWN:
                self.suspects.add(other)

    def _from_suspects(self) -> Plan:
        return self._again(
            [
                piece
                for piece, source in enumerate(self.sources)
                if source in self.suspects and piece not in self._awaited
            ]
        )

    def _in_rounds(self) -> deque[list[int]]:
        """All pieces that nothing is settled about, some of each mirror in each round."""
        by_source: dict[int, list[int]] = {}
        for piece, source in enumerate(self.sources):
            if piece not in self._settled:
                by_source.setdefault(source, []).append(piece)
        rounds: deque[list[int]] = deque()
        at, count = 0, FIRST_PIECES
        while some := [p for pieces in by_source.values() for p in pieces[at : at + count]]:
            rounds.append(sorted(some))
            at, count = at + count, min(2 * count, MOST_PIECES)
        return rounds

    def _next_round(self) -> Plan:
        while self._rounds:
            some = self._rounds.popleft()
            if plan := self._again(p for p in some if p not in self._awaited):
                self._awaited |= plan.keys()
                self._round_size = len(plan)
                return plan
        return {}

    def _ask_the_silent(self, usable: Sequence[int]) -> Plan:
        known = {p: self._opinions.get(p, {m: b""}) for p, m in enumerate(self.sources)}
        return {
            piece: frozenset(opinions)
            for piece, opinions in known.items()
            if any(mirror not in opinions for mirror in usable)
        }

    def _take_alone(self, usable: Sequence[int]) -> Plan:
        """Make the file one mirror's: what it sent or agreed to stays, it is asked the rest.

        First those who never agreed with a file that was wrong, then those who have most of it.
        """
        while len(self._alone) < MAX_ALONE:
            missing = {m: self._not_of(m) for m in usable if m not in self._alone}
            if not missing:
                break
            mirror = min(missing, key=lambda m: (self._doubts[m], len(missing[m]), m))
            self._alone.append(mirror)
            if missing[mirror]:
                return dict.fromkeys(missing[mirror], frozenset(usable) - {mirror})
            if self.has_news:
                break  # it is that file already, and nobody has compared it
        return {}

    def _not_of(self, mirror: int) -> list[int]:
        """The pieces of which it is not known that *mirror* has the same."""
        return [
            piece
            for piece, source in enumerate(self.sources)
            if source != mirror and self._opinions.get(piece, {}).get(mirror) != self.digests[piece]
        ]

    def _disputes(self) -> Iterator[tuple[int, dict[int, bytes]]]:
        return (
            (piece, opinions)
            for piece, opinions in self._opinions.items()
            if len(set(opinions.values())) > 1
        )

    @property
    def liars(self) -> list[int]:
        """Who sent wrong bytes, if the whole file is right now."""
        return sorted(
            {
                mirror
                for piece, opinions in self._disputes()
                for mirror, digest in opinions.items()
                if digest != self.digests[piece]
                and mirror not in (UNKNOWN, self.hearsay.get(piece))
            }
        )

    @property
    def contradicting(self) -> list[int]:
        """The mirrors of which some sent other bytes than others."""
        return sorted({m for _, opinions in self._disputes() for m in opinions} - {UNKNOWN})

    @property
    def alone(self) -> int | None:
        """The mirror that the whole file is taken from now."""
        return self._alone[-1] if self._alone else None

    def opinion(self, piece: int, mirror: int) -> bytes | None:
        """What *mirror* sent as *piece*, if that is known."""
        if mirror == self.sources[piece]:
            return self.digests[piece]
        return self._opinions.get(piece, {}).get(mirror)

    def needed_later(self, pieces: Iterable[int]) -> list[int]:
        """Those of *pieces* whose bytes are of a mirror that the file may yet be taken from."""
        return [p for p in pieces if self.sources[p] not in (UNKNOWN, *self._alone)]

    @property
    def is_certain(self) -> bool:
        """Whether it acts on a suspicion, and does not look for one any more."""
        return bool(self.suspects or self._alone)

    def _again(self, pieces: Iterable[int]) -> Plan:
        plan: Plan = {}
        for piece in pieces:
            if piece in self._settled:
                continue
            known = self._opinions.get(piece) or {self.sources[piece]: b""}
            plan[piece] = frozenset(m for m in known if m != UNKNOWN) | self.suspects
        return plan
