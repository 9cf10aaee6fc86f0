"""The cases with shaped mirrors: who is good, who is not, and how near to ideal ddfs has to be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from bench_fetch_material import DENSE_EVERY_BYTES, KIB, LIE_AT, LIE_EVERY_BYTES, MIB
from shaped import Mirror

SIZE: Final = 512 * MIB
PIECE: Final = 4 * MIB

LATENCY: Final = 0.010
FAR: Final = 0.150

# How much a mirror sends of each answer before its fault shows.
STALLS_AFTER: Final = 512 * KIB
RESETS_AFTER: Final = 8 * MIB

PEERS: Final = ("aria2c", "aria2c -k1M", "wget2", "axel")

# Each mirror is first asked for so much; the single byte of a liar is in what it is asked for
# first, for elsewhere another one may be asked and there is no lie; not where samples are taken.
FIRST_RUN: Final = 64 * MIB
SINGLE_AT: Final = 10 * MIB + LIE_AT

# Stand for the roots of the liars' files in a mirror of this module: where each lies.
LIES: Final = {
    "lies": range(LIE_AT, SIZE, LIE_EVERY_BYTES),
    "dense": range(LIE_AT, SIZE, DENSE_EVERY_BYTES),
    **{
        f"single-{at}": range(at * FIRST_RUN + SINGLE_AT, at * FIRST_RUN + SINGLE_AT + 1)
        for at in range(4)
    },
}


@dataclass(frozen=True)
class Case:
    """Ideal is the time in which ``good`` could deliver the file, all at their rates.

    ``bad`` stands in the document before the good mirror number ``bad_at``. ``bar`` is time
    over ideal. With ``refused``, the whole-file hash in the document is wrong.
    """

    name: str
    title: str
    good: tuple[Mirror, ...]
    bar: float
    bad: Mirror | None = None
    bad_at: int = 0
    has_pieces: bool = True
    refused: bool = False
    priorities: tuple[int, ...] = ()
    peers: tuple[str, ...] = PEERS

    @property
    def mirrors(self) -> tuple[Mirror, ...]:
        """As they stand in the document, each on an address of its own."""
        at = self.bad_at
        everyone = self.good
        if self.bad is not None:
            everyone = (*self.good[:at], self.bad, *self.good[at:])
        return tuple(
            replace(mirror, address=f"127.0.1.{number}")
            for number, mirror in enumerate(everyone, start=1)
        )

    @property
    def has_liar(self) -> bool:
        return self.bad is not None and self.bad.root in LIES

    @property
    def best(self) -> int:
        """The mirror for a client that takes only one: the fastest good one."""
        rates = [0.0 if m.fault or m.root in LIES else m.rate for m in self.mirrors]
        return rates.index(max(rates))

    @property
    def ideal(self) -> float:
        """In seconds."""
        changes = sorted(mirror.then[0] for mirror in self.good if mirror.then)
        left, now = SIZE / MIB, 0.0
        for change in (*changes, float("inf")):
            rate = sum(_rate_at(mirror, now) for mirror in self.good)
            if left <= rate * (change - now):
                return now + left / rate
            left -= rate * (change - now)
            now = change
        raise AssertionError("the last change is never")


def _rate_at(mirror: Mirror, seconds: float) -> float:
    then = mirror.then
    return then[1] if then is not None and seconds >= then[0] else mirror.rate


def _mirrors(*rates: float, latency: float = LATENCY) -> tuple[Mirror, ...]:
    return tuple(Mirror("", "", rate, latency) for rate in rates)


def _bad(rate: float = 30, *, fault: str = "", fault_bytes: int = 0, root: str = "") -> Mirror:
    return Mirror("", root, rate, LATENCY, fault=fault, fault_bytes=fault_bytes)


UNEQUAL: Final = _mirrors(40, 20, 10, 2)
THREE: Final = _mirrors(30, 30, 30)
COLLAPSING: Final = (replace(_mirrors(40)[0], then=(2.0, 0.1)), *_mirrors(20, 10))
DRIP: Final = 10 / 1024


def _liars(mirrors: int) -> tuple[Case, ...]:
    """One of *mirrors* lies, at each place of the list, in every KiB or in a single byte."""
    kinds = (("dense", "in every KiB"), ("single", "in one byte"))
    return tuple(
        Case(
            f"{kind}-{at + 1}-of-{mirrors}",
            f"number {at + 1} of {mirrors} at 30 MiB/s wrong {where}, whole-file hash only",
            _mirrors(*[30] * (mirrors - 1)),
            2.0,
            _bad(root=f"single-{at}" if kind == "single" else kind),
            at,
            has_pieces=False,
            peers=(),
        )
        for kind, where in kinds
        for at in range(mirrors)
    )


CASES: Final = (
    Case("unequal", "40/20/10/2 MiB/s", UNEQUAL, 1.05),
    Case("no-pieces", "40/20/10/2 MiB/s, no pieces", UNEQUAL, 1.08, has_pieces=False),
    Case("fifth", "40/20/10/2 and a fifth at 0.2 MiB/s", (*UNEQUAL, *_mirrors(0.2)), 1.08),
    Case(
        "priorities",
        "five at 2 MiB/s of top priority, ten at 10 below",
        _mirrors(*[2] * 5, *[10] * 10),
        1.12,
        priorities=(*[1] * 5, *[50] * 10),
        peers=("aria2c", "aria2c -k1M", "aria2c -k1M -s15", "wget2", "axel"),
    ),
    Case("collapse", "40 MiB/s that falls to 0.1 after 2 s, 20, 10", COLLAPSING, 1.03),
    Case(
        "far", "four at 20 MiB/s, 150 ms to the first byte", _mirrors(*[20] * 4, latency=FAR), 1.05
    ),
    Case("drip", "three at 30 MiB/s, one drips 10 KiB/s", THREE, 1.08, _bad(DRIP)),
    Case(
        "stall",
        "three at 30 MiB/s, one stalls after 512 KiB",
        THREE,
        1.08,
        _bad(fault="stall", fault_bytes=STALLS_AFTER),
    ),
    Case(
        "silent",
        "three at 30 MiB/s, one accepts and never answers",
        THREE,
        1.08,
        _bad(fault="silent"),
    ),
    Case(
        "reset",
        "three at 30 MiB/s, one resets after each 8 MiB",
        THREE,
        1.08,
        _bad(fault="reset", fault_bytes=RESETS_AFTER),
    ),
    Case("corrupt", "three at 30 MiB/s, one corrupt, with pieces", THREE, 1.05, _bad(root="lies")),
    *(
        Case(
            f"corrupt-whole-{at + 1}",
            f"three at 30 MiB/s, number {at + 1} of 4 corrupt, whole-file hash only",
            THREE,
            2.0,
            _bad(root="lies"),
            at,
            has_pieces=False,
            # Where the liar stands makes no difference to who cannot tell.
            peers=PEERS if at == 0 else (),
        )
        for at in range(4)
    ),
    *_liars(2),
    *_liars(3),
    *_liars(4),
    Case(
        "wrong-hash",
        "right pieces, wrong whole-file hash",
        THREE,
        0.0,
        refused=True,
        peers=("aria2c", "aria2c -k1M", "wget2"),
    ),
)
