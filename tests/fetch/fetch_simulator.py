"""A world of mirrors without sockets, for the scheduler: time in steps, everything seeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ddfs.fetch import pieces as states
from ddfs.fetch.mirrors import Failure, FailureKind
from ddfs.fetch.runs import Action, Ask, Blame, Cancel, Extend, Recheck, Trim
from ddfs.fetch.scheduler import Scheduler
from ddfs.model import Grid

GOOD, WRONG = b"good", b"wrong"


@dataclass
class SimMirror:
    """*rate* maps seconds since the start to bytes per second, of each connection.

    ``total`` is what all its connections share, ``most`` how many of them it accepts.
    """

    rate: Callable[[float], float]
    latency: float = 0.01
    lies: Callable[[int], bool] = lambda piece: False
    fails_after: int | None = None
    failure: Failure | None = None
    total: float = float("inf")
    most: int = 1000
    sent: int = 0
    asked: int = 0


@dataclass
class SimRun:
    mirror: int
    position: float
    end: int
    piece: int
    wait: float
    is_cancelled: bool = False
    got: float = 0.0


@dataclass
class World:
    """Drives a scheduler. *claim* bytes ahead of what was reported cannot be cut off."""

    grid: Grid
    mirrors: list[SimMirror]
    claim: int = 256 * 1024
    now: float = 0.0
    runs: dict[int, SimRun] = field(default_factory=dict)
    blamed: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    requests: int = 0
    checks: bool = True
    lanes: int = 1

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.grid, len(self.mirrors), lanes=self.lanes)
        self.scheduler.begin([], 0.0)

    def run(self, limit: float, step: float = 0.05) -> float:
        """Until the fetch ends, in steps of *step* seconds. Returns the time that took."""
        while not self.is_over:
            self.step(step)
            assert self.now < limit, f"not done after {self.now:.1f} s: {self.describe()}"
        return self.now

    @property
    def is_over(self) -> bool:
        return self.scheduler.is_complete or self.scheduler.verdict is not None

    def describe(self) -> str:
        table = self.scheduler.table
        runs = {k: (r.mirror, r.piece, r.end) for k, r in self.runs.items()}
        return f"{table.held_count} of {self.grid.count} held, runs {runs}"

    def step(self, seconds: float) -> None:
        self.now += seconds
        for run_id in list(self.runs):
            self._move(run_id, seconds)
        for run_id, run in self.runs.items():
            self.scheduler.progressed(run_id, int(run.position), self.now)
        self.decide()

    def decide(self) -> None:
        for _ in range(10_000):
            actions = self.scheduler.decide(self.now)
            if not actions:
                break
            for action in actions:
                self.do(action)
        else:
            raise AssertionError("the scheduler does not come to an end")
        if self.checks:
            self.check()

    def do(self, action: Action) -> None:
        match action:
            case Ask():
                self._ask(action)
            case Trim(run, end):
                sim = self.runs[run]
                reached = -(-int(sim.position + self.claim) // self.grid.piece_length)
                sim.end = min(sim.end, max(end, reached if sim.got else end))
                self.scheduler.trimmed(run, sim.end)
            case Extend(run, end):
                self.runs[run].end = end
            case Cancel(run):
                self.runs[run].is_cancelled = True
            case Recheck(piece):
                assert not self.scheduler.writers(piece), "rechecked while somebody writes"
                if self.scheduler.rechecked(piece, matches=True, mirror=0):
                    self.held.append(piece)
            case Blame(mirror):
                self.blamed.append(mirror)

    def _ask(self, ask: Ask) -> None:
        standing = self.scheduler.mirrors[ask.mirror]
        owner = self.scheduler.owner(ask.mirror)
        assert standing.is_usable(self.now), "asked a mirror that rests or is out"
        assert self.scheduler.mirrors[owner].is_usable(self.now), "asked one that rests or is out"
        others = sum(run.mirror == ask.mirror for run in self.runs.values())
        assert others <= (self.lanes == 1), "asked a busy mirror"
        assert ask.first < ask.end <= self.grid.count
        mirror = self.mirrors[owner]
        mirror.asked += 1
        self.requests += 1
        start = self.grid.bytes_of(ask.first).start
        self.runs[ask.run] = SimRun(ask.mirror, start, ask.end, ask.first, mirror.latency)

    def _move(self, run_id: int, seconds: float) -> None:
        run = self.runs[run_id]
        mirror = self.mirrors[self.scheduler.owner(run.mirror)]
        if run.is_cancelled:
            return self._end(run_id, None)
        same = [i for i, r in self.runs.items() if r.mirror == run.mirror or self.lanes > 1]
        if len(same) > mirror.most and run_id == max(same):
            return self._end(run_id, Failure(FailureKind.BUSY, "one connection only"))
        run.wait -= seconds
        if run.wait > 0:
            return None
        seconds = min(seconds, -run.wait + 1e-9)
        if mirror.failure is not None and mirror.sent >= (mirror.fails_after or 0):
            return self._end(run_id, mirror.failure)
        share = mirror.total / sum(
            r.mirror == run.mirror or self.lanes > 1 for r in self.runs.values()
        )
        # What was asked for ahead shares the mirror's link with what it is busy with.
        beside = sum(r.mirror == run.mirror and r.wait <= 0 for r in self.runs.values())
        rate = mirror.rate(self.now) / (1 if self.lanes > 1 else max(1, beside))
        amount = min(rate, share) * seconds
        run.position += amount
        run.got += amount
        mirror.sent += int(amount)
        while run.piece < run.end and run.position >= self.grid.bytes_of(run.piece).end:
            lies = mirror.lies(run.piece)
            held = self.scheduler.piece_arrived(
                run_id, run.piece, self.now, matches=not lies, digest=WRONG if lies else GOOD
            )
            assert not (held and lies)
            if held:
                self.held.append(run.piece)
            run.piece += 1
        if run.piece >= run.end:
            self._end(run_id, None)
        return None

    def _end(self, run_id: int, failure: Failure | None) -> None:
        del self.runs[run_id]
        self.scheduler.run_ended(run_id, self.now, failure)

    def check(self) -> None:
        """Every piece is in exactly one state, and the sets say the same."""
        table = self.scheduler.table
        counts = [table.states.count(state) for state in range(5)]
        assert sum(counts) == self.grid.count
        assert counts[states.FREE] == table.free.total
        assert counts[states.CONTESTED] == table.contested.total
        assert counts[states.HELD] == table.held_count == len(set(self.held)) == len(self.held)
        writers = [0] * self.grid.count
        for run in self.scheduler.runs.values():
            for piece in range(run.next, run.end):
                writers[piece] += 1
        for piece, state in enumerate(table.states):
            if state in (states.FREE, states.CONTESTED, states.HELD):
                dying = any(
                    r.is_cancelled and r.next <= piece < r.end for r in self.scheduler.runs.values()
                )
                assert writers[piece] == 0 or dying, f"piece {piece}: state {state}, has a writer"
            if state == states.ASKED:
                assert writers[piece] >= 1, f"piece {piece} is asked of nobody"
        if self.scheduler.is_complete:
            assert counts[states.HELD] == self.grid.count


def transient(message: str = "broke") -> Failure:
    return Failure(FailureKind.TRANSIENT, message)
