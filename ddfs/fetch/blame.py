"""Which mirror lied, when the whole file is wrong and no piece hash says where. Pure.

Every piece came with our own hash and the mirror that sent it. The bytes of a few pieces of
each mirror are fetched again from another one. Where two mirrors differ a third decides;
the loser is a liar, and all that came from it is fetched elsewhere. Where there is no third,
each of the two is taken for the liar in turn, and the whole-file hash decides. Only if the
samples all agree is everything fetched a second time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

# Pieces of each mirror that are compared first. A mirror with damage in every second piece
# passes eight with a probability of 0.4 %.
SAMPLES: Final = 8

# Sent by nobody that this fetch knows: an earlier run had another list of mirrors.
UNKNOWN: Final = -1

Plan = dict[int, frozenset[int]]


class Inquest:
    """*sources* and *digests* say who sent each piece and what arrived; kept up to date."""

    def __init__(self, sources: Sequence[int], digests: Sequence[bytes]) -> None:
        self.sources = list(sources)
        self.digests = list(digests)
        self.liars: set[int] = set()
        self.has_news = False
        self._opinions: dict[int, dict[int, bytes]] = {}
        self._settled: set[int] = set()
        self._undecided: set[int] = set()
        self._accused: list[int] = []
        self._stage = 0

    def plan(self, usable: Sequence[int]) -> Plan:
        """Pieces to fetch again, each with the mirrors not to ask.

        Empty: nothing more to learn before the whole file is compared again, which makes
        sense only if ``has_news``.
        """
        plan = self._from_liars(usable)
        if not plan and self._stage == 0:
            self._stage = 1
            plan = self._again(self._samples(usable))
        if not plan and self._undecided:
            plan = self._accuse(usable)
        if not plan and self._stage == 1 and not self.has_news:
            self._stage = 2
            plan = self._again(range(len(self.sources)))
        return plan

    def heard(self, piece: int, mirror: int, digest: bytes, usable: Sequence[int]) -> Plan:
        """*mirror* sent *piece* again. Returns what has to be fetched at once because of it."""
        opinions = self._opinions.setdefault(piece, {self.sources[piece]: self.digests[piece]})
        if digest != self.digests[piece]:
            self.has_news = True
        self.sources[piece], self.digests[piece] = mirror, digest
        opinions[mirror] = digest
        # What a liar says counts neither for nor against anybody.
        others = {d for m, d in opinions.items() if m != mirror and m not in self.liars}
        if mirror not in self.liars and digest in others:
            self._settle(piece, digest)
        elif mirror in self.liars or others:
            silent = [m for m in usable if m not in opinions and m not in self.liars]
            if silent:
                return {piece: frozenset(opinions)}
            self._undecided.add(piece)
        return {}

    def compared(self) -> None:
        """The whole file was compared and is still wrong."""
        self.has_news = False
        self._stage = 1

    def _settle(self, piece: int, digest: bytes) -> None:
        self._settled.add(piece)
        self._undecided.discard(piece)
        for other, theirs in self._opinions[piece].items():
            if theirs != digest and other != UNKNOWN:
                self.liars.add(other)

    def _from_liars(self, usable: Sequence[int]) -> Plan:
        pieces = [
            piece
            for piece, source in enumerate(self.sources)
            if source in self.liars and piece not in self._settled
        ]
        honest = [m for m in usable if m not in self.liars]
        return self._again(pieces) if honest else {}

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

    def _accuse(self, usable: Sequence[int]) -> Plan:
        """Two mirrors contradict each other and nobody else is there: suspect one of them."""
        parties = {m for piece in self._undecided for m in self._opinions[piece]} - {UNKNOWN}
        shares = Counter(self.sources)
        accused = next(
            (m for m in sorted(parties, key=lambda m: shares[m]) if m not in self._accused), None
        )
        if accused is None or (self.has_news and self._accused):
            return {}
        self._accused.append(accused)
        innocent = [m for m in usable if m != accused]
        if not innocent:
            return {}
        others = frozenset(m for m in usable if m not in innocent) | {accused}
        self.has_news = True
        # Where another one sent the same, asking again would change nothing.
        return {
            piece: others
            for piece, source in enumerate(self.sources)
            if source == accused and piece not in self._settled
        }

    @property
    def accused(self) -> int | None:
        """Whom a whole-file hash that now matches would prove to be a liar."""
        return self._accused[-1] if self._accused else None

    @property
    def contradicting(self) -> list[int]:
        """The mirrors of which some sent other bytes than others."""
        disputes = [o for o in self._opinions.values() if len(set(o.values())) > 1]
        return sorted({mirror for opinions in disputes for mirror in opinions} - {UNKNOWN})

    @property
    def is_certain(self) -> bool:
        """Whether it acts on a liar or a suspect, and does not look for one any more."""
        return bool(self.liars or self._accused)

    def _again(self, pieces: Sequence[int]) -> Plan:
        plan: Plan = {}
        for piece in pieces:
            if piece in self._settled:
                continue
            known = self._opinions.get(piece) or {self.sources[piece]: b""}
            plan[piece] = frozenset(m for m in known if m != UNKNOWN) | self.liars
        return plan
