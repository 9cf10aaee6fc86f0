"""Which mirror lied, when the whole file is wrong and no piece hash says where. Pure.

Every piece came with our own hash and the mirror that sent it. The bytes of a few pieces of
each mirror are fetched again from another one. Where two mirrors differ a third decides;
the loser is a suspect, and all that came from it is fetched elsewhere. If the samples all
agree, everything is fetched a second time, and where that is the same again, a third time
from those who were not asked yet.

A majority is a guess: two mirrors may have copied from the same broken place. Where there is
none, or the file is wrong with its bytes, the file is taken from one mirror alone after the
other. Only a whole-file hash that matches proves who lied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

# Pieces of each mirror that are compared first. A mirror with damage in every second piece
# passes eight with a probability of 0.4 %.
SAMPLES: Final = 8

# Mirrors that the file is taken from alone, one after the other: each may cost the whole file
# once more, and where four are wrong, more likely the checksum is.
MAX_ALONE: Final = 4

# Sent by nobody that this fetch knows: an earlier run had another list of mirrors.
UNKNOWN: Final = -1

Plan = dict[int, frozenset[int]]


class Inquest:
    """*sources* and *digests* say who sent each piece and what arrived; kept up to date.

    ``suspects`` were outvoted, or nobody yet.
    """

    def __init__(self, sources: Sequence[int], digests: Sequence[bytes]) -> None:
        self.sources = list(sources)
        self.digests = list(digests)
        self.suspects: set[int] = set()
        self.has_news = False
        self._opinions: dict[int, dict[int, bytes]] = {}
        self._settled: set[int] = set()
        self._undecided: set[int] = set()
        self._alone: list[int] = []
        # How often a mirror agreed with a file that was wrong, where others did not.
        self._doubts: Counter[int] = Counter()
        self._stage = 0

    def plan(self, usable: Sequence[int]) -> Plan:
        """Pieces to fetch again, each with the mirrors not to ask.

        Empty: nothing more to learn before the whole file is compared again, which makes
        sense only if ``has_news``.
        """
        if self._alone:
            return {} if self.has_news else self._take_alone(usable)
        trusted = [m for m in usable if m not in self.suspects]
        plan = self._from_suspects() if trusted else {}
        if not plan and self._stage == 0:
            self._stage = 1
            plan = self._again(self._samples(trusted))
        if not plan and self._undecided and not self.suspects:
            return self._take_alone(usable)
        if plan or self.has_news:
            return plan
        # A majority of two was wrong: asking them once more says nothing.
        if self._stage == 1 and not (self.suspects and len(trusted) <= 2):
            self._stage = 2
            plan = self._again(range(len(self.sources)))
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
        opinions[mirror] = digest
        if self._alone:
            return {}
        # What a suspect says counts neither for nor against anybody.
        others = {d for m, d in opinions.items() if m != mirror and m not in self.suspects}
        if mirror not in self.suspects and digest in others:
            self._settle(piece, digest)
        elif mirror in self.suspects or others:
            silent = [m for m in usable if m not in opinions and m not in self.suspects]
            if silent:
                return {piece: frozenset(opinions)}
            self._undecided.add(piece)
        return {}

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
                if source in self.suspects and piece not in self._settled
            ]
        )

    def _samples(self, usable: Sequence[int]) -> list[int]:
        by_source: dict[int, list[int]] = {}
        for piece, source in enumerate(self.sources):
            by_source.setdefault(source, []).append(piece)
        if len(usable) < 2:
            return []  # nobody to compare with: all of it again
        samples: set[int] = set()
        for pieces in by_source.values():
            # In a long list two neighbours are one request. An odd offset now and then, so
            # that damage at a regular distance is not stepped over.
            width = 2 if len(pieces) >= 2 * SAMPLES else 1
            count = min(SAMPLES // width, len(pieces))
            for k in range(count):
                at = min(int(k * len(pieces) / count) + k % 2, len(pieces) - width)
                samples.update(pieces[at : at + width])
        return sorted(samples)

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
                if digest != self.digests[piece] and mirror != UNKNOWN
            }
        )

    @property
    def contradicting(self) -> list[int]:
        """The mirrors of which some sent other bytes than others."""
        return sorted({m for _, opinions in self._disputes() for m in opinions} - {UNKNOWN})

    @property
    def is_certain(self) -> bool:
        """Whether it acts on a suspicion, and does not look for one any more."""
        return bool(self.suspects or self._alone)

    def _again(self, pieces: Sequence[int]) -> Plan:
        plan: Plan = {}
        for piece in pieces:
            if piece in self._settled:
                continue
            known = self._opinions.get(piece) or {self.sources[piece]: b""}
            plan[piece] = frozenset(m for m in known if m != UNKNOWN) | self.suspects
        return plan
