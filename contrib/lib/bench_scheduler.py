"""contrib/bench scheduler: what the scheduler of a fetch costs as its numbers grow.

A world without sockets drives it as a fetch would: each piece that arrives, each look at the
clock and each end of a request is an event, and after each it decides until it has nothing
more to say. Time is this process's CPU time; the least of some rounds counts, because other
programs on the host only add to it. Memory is what Python allocated, at its peak.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ddfs.fetch.runs import Ask, Cancel, Extend, Recheck, Trim
from ddfs.fetch.scheduler import Scheduler
from ddfs.model import Grid, KiB, MiB

PIECE: Final = 256 * KiB
TICK_SECONDS: Final = 0.05

# Bytes per second; drawn anew for each mirror, the same in every run.
SLOWEST: Final = 1 * MiB
FASTEST: Final = 40 * MiB
LATENCY_SECONDS: Final = 0.02

# Enough for a mean, few enough for a short run.
EVENTS: Final = 12_000
# A fetch begins with few mirrors; what it costs is measured when it asks as many as it will.
WARM_TICKS: Final = 30
TRACED_EVENTS: Final = 1_500
ROUNDS: Final = 2

# What begins more slowly is not made ten times as large, or nobody would wait for the end.
MAX_BEGIN_SECONDS: Final = 1.5

# Of two measurements on a busy machine, one is that much too long.
NOISE: Final = 1.3


@dataclass(frozen=True)
class Load:
    """*fetches* at once, each of *pieces* pieces from *mirrors* mirrors. *is_ragged* ones go
    on from an earlier run that had brought every second piece: as many gaps as there can be.
    """

    pieces: int
    mirrors: int
    fetches: int
    is_ragged: bool = False


@dataclass
class Request:
    mirror: int
    position: float
    piece: int
    end: int
    wait: float = LATENCY_SECONDS


@dataclass
class Fetch:
    """One scheduler and the mirrors that it believes in."""

    load: Load
    seed: int
    now: float = 0.0
    events: int = 0
    requests: dict[int, Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        self.rates = [chance.uniform(SLOWEST, FASTEST) for _ in range(self.load.mirrors)]
        self.scheduler = Scheduler(Grid(self.load.pieces * PIECE, PIECE), self.load.mirrors)
        held = range(0, self.load.pieces, 2) if self.load.is_ragged else range(0)
        self.scheduler.begin(held, self.now)
        self._decide()

    def tick(self) -> None:
        self.now += TICK_SECONDS
        for run_id in list(self.requests):
            if run_id in self.requests:
                self._move(run_id)
        for run_id, request in list(self.requests.items()):
            if run_id in self.requests:
                self.scheduler.progressed(run_id, int(request.position), self.now)
                self._happened()

    def _move(self, run_id: int) -> None:
        request = self.requests[run_id]
        request.wait -= TICK_SECONDS
        if request.wait > 0:
            return
        request.position += self.rates[request.mirror] * TICK_SECONDS
        request.position = min(request.position, request.end * PIECE)
        while request.piece < request.end and request.position >= (request.piece + 1) * PIECE:
            self.scheduler.piece_arrived(run_id, request.piece, self.now, matches=True, digest=b"")
            request.piece += 1
            self._happened()
            if run_id not in self.requests:
                return
        if request.piece >= request.end:
            self._end(run_id)
            self._happened()

    def _end(self, run_id: int) -> None:
        del self.requests[run_id]
        self.scheduler.run_ended(run_id, self.now)

    def _happened(self) -> None:
        self.events += 1
        self._decide()

    def _decide(self) -> None:
        while actions := self.scheduler.decide(self.now):
            for action in actions:
                match action:
                    case Ask(run, mirror, first, end):
                        self.requests[run] = Request(mirror, first * PIECE, first, end)
                    case Trim(run, end):
                        request = self.requests[run]
                        request.end = min(request.end, max(end, request.piece + 1))
                        self.scheduler.trimmed(run, request.end)
                    case Extend(run, end):
                        self.requests[run].end = end
                    case Cancel(run):
                        self._end(run)
                    case Recheck(piece):
                        self.scheduler.rechecked(piece, matches=True, mirror=0)


@dataclass(frozen=True)
class Cost:
    """Seconds to begin all fetches, seconds per event, and bytes."""

    begin: float
    event: float
    memory: int


def measure(load: Load) -> Cost:
    timed = [_drive(load, EVENTS, WARM_TICKS) for _ in range(ROUNDS)]
    gc.collect()
    tracemalloc.start()
    try:
        _drive(load, TRACED_EVENTS, 0)
        memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return Cost(min(begin for begin, _ in timed), min(event for _, event in timed), memory)


def _drive(load: Load, events: int, warm_ticks: int) -> tuple[float, float]:
    gc.collect()
    began = time.process_time()
    fetches = [Fetch(load, seed) for seed in range(load.fetches)]
    begin = time.process_time() - began
    for fetch in fetches:
        for _ in range(warm_ticks):
            fetch.tick()
    before = sum(fetch.events for fetch in fetches)
    began = time.process_time()
    while (done := sum(fetch.events for fetch in fetches)) < before + events:
        for fetch in fetches:
            fetch.tick()
        if all(fetch.scheduler.is_complete for fetch in fetches):
            done = sum(fetch.events for fetch in fetches)
            break
    return begin, (time.process_time() - began) / max(done - before, 1)


# What grows, and how the work of a fetch follows from it: events come per piece and per
# fetch, so that there the time per event may grow by the logarithm alone.
AXES: Final = (
    ("pieces", [Load(n, 20, 1) for n in (10**4, 10**5, 10**6)]),
    ("pieces, ragged", [Load(n, 20, 1, is_ragged=True) for n in (10**4, 10**5, 10**6)]),
    ("mirrors", [Load(10**5, n, 1) for n in (2, 20, 200)]),
    ("fetches", [Load(10**5, 20, n) for n in (1, 10, 50)]),
    ("all", [Load(10**6, 200, 50)]),
)


def run(_: Path, arguments: Sequence[str]) -> bool:
    """Whether nothing grows faster than n log n."""
    argparse.ArgumentParser(prog="contrib/bench scheduler").parse_args(arguments)
    print(
        f"{'grows':16}{'pieces':>9}{'mirrors':>9}{'fetches':>9}"
        f"{'begin':>11}{'per event':>12}{'memory':>11}   times, against n log n"
    )
    all_reached = True
    for name, loads in AXES:
        before: tuple[Load, Cost] | None = None
        for load in loads:
            cost = measure(load)
            verdict, reached = ("", True) if before is None else _growth(name, before, (load, cost))
            all_reached &= reached
            print(
                f"{name:16}{load.pieces:9}{load.mirrors:9}{load.fetches:9}"
                f"{cost.begin * 1e3:8.1f} ms{cost.event * 1e6:9.1f} us"
                f"{cost.memory / MiB:7.2f} MiB   {verdict}",
                flush=True,
            )
            before = load, cost
            if cost.begin > MAX_BEGIN_SECONDS and load != loads[-1]:
                all_reached = False
                print(f"{name:16}MISSED: it begins too slowly to go on")
                break
    return all_reached


def _growth(name: str, old: tuple[Load, Cost], new: tuple[Load, Cost]) -> tuple[str, bool]:
    axis = name.split(",")[0]
    n, m = getattr(old[0], axis), getattr(new[0], axis)
    allowed = m * math.log2(m + 1) / (n * math.log2(n + 1))
    events = m / n if axis != "mirrors" else 1.0
    work = events * new[1].event / old[1].event
    begin = new[1].begin / max(old[1].begin, 1e-3)
    memory = new[1].memory / old[1].memory
    reached = max(work / NOISE, begin / NOISE, memory) <= allowed
    text = (
        f"work {work:.1f}, begin {begin:.1f}, memory {memory:.1f}; "
        f"at most {allowed:.1f}: {'ok' if reached else 'MISSED'}"
    )
    return text, reached
