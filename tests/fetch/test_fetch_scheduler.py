from __future__ import annotations

import random
import time

import pytest
from fetch_simulator import SimMirror, World, transient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ddfs.fetch.mirrors import Failure, FailureKind
from ddfs.fetch.pieces import HELD
from ddfs.fetch.runs import Ask, Cancel
from ddfs.fetch.scheduler import GIVE_UP_SECONDS, Scheduler
from ddfs.fetch.state import Verdict
from ddfs.model import Grid, MiB


def steady(mib_per_second: float) -> SimMirror:
    return SimMirror(rate=lambda now: mib_per_second * MiB)


GRID = Grid(512 * MiB, 4 * MiB)


@pytest.mark.parametrize(
    ("name", "mirrors", "ideal", "bar"),
    [
        ("unequal", [steady(r) for r in (40, 20, 10, 2)], 512 / 72, 1.06),
        ("and one very slow", [steady(r) for r in (40, 20, 10, 2, 0.2)], 512 / 72, 1.08),
        (
            "slow ones of top priority",
            [steady(2) for _ in range(5)] + [steady(10) for _ in range(10)],
            512 / 110,
            1.15,
        ),
        (
            "collapse",
            [SimMirror(rate=lambda now: (40 if now < 2 else 0.1) * MiB), steady(20), steady(10)],
            14.36,
            1.05,
        ),
        ("drip", [steady(0.01), steady(30), steady(30), steady(30)], 512 / 90, 1.08),
        ("stall", [steady(0), steady(30), steady(30), steady(30)], 512 / 90, 1.08),
        (
            "stall later",
            [SimMirror(rate=lambda now: 30 * MiB if now < 2 else 0)] + [steady(30)] * 3,
            (512 - 60) / 90,
            1.10,
        ),
        ("far away", [SimMirror(rate=lambda now: 20 * MiB, latency=0.15)] * 4, 6.4, 1.04),
        ("one far away", [SimMirror(lambda now: 40 * MiB, latency=0.3), steady(40)], 6.4, 1.08),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_takes_hardly_longer_than_the_good_mirrors_could(name, mirrors, ideal, bar):
    world = World(GRID, [SimMirror(m.rate, m.latency) for m in mirrors])
    seconds = world.run(limit=ideal * 3, step=0.02)
    assert world.scheduler.is_complete
    assert seconds / ideal <= bar, f"{name}: {seconds / ideal:.3f} of the ideal"
    assert world.requests <= 60


def test_a_mirror_that_takes_one_connection_only_is_left_in_peace():
    far = [SimMirror(rate=lambda now: 20 * MiB, latency=0.15, most=1) for _ in range(2)]
    world = World(GRID, far)
    seconds = world.run(limit=30, step=0.02)
    assert world.scheduler.is_complete
    assert all(m.takes_one_only and m.failures == 0 for m in world.scheduler.mirrors)
    assert seconds / 12.8 <= 1.12


def test_a_slow_mirror_works_from_the_end():
    """The hash of the whole file waits for nothing but its own end."""
    world = World(GRID, [steady(2), steady(40), steady(40)])
    front_waits = 0.0
    while not world.is_over:
        world.step(0.02)
        states = bytes(world.scheduler.table.states)
        behind = states.count(HELD) - (len(states) - len(states.lstrip(bytes([HELD]))))
        # More than a second of the others' work lies behind a hole in the front.
        front_waits += 0.02 * (world.now > 5 and behind * 4 > 80)
    assert front_waits < 1.0


def test_a_rate_that_was_measured_before_widens_at_once():
    def first_requests(begun_seconds: float) -> int:
        world = World(GRID, [steady(2) for _ in range(12)])
        world.decide()
        if begun_seconds:
            for run in list(world.scheduler.runs):
                brought = int(2 * MiB * begun_seconds)
                world.scheduler.began_earlier(run, 0.01, brought, begun_seconds)
        world.step(0.02)
        return world.requests

    assert first_requests(0.0) == 4
    assert first_requests(0.1) == 12


def test_one_liar_is_blamed_and_the_file_completes():
    liar = SimMirror(rate=lambda now: 30 * MiB, lies=lambda piece: piece % 2 == 0)
    world = World(GRID, [liar, steady(30), steady(30)])
    world.run(limit=90)
    assert world.scheduler.is_complete
    assert world.blamed == [0]


def test_mirrors_that_agree_on_wrong_bytes_make_the_document_suspect():
    liars = [SimMirror(rate=lambda now: 30 * MiB, lies=lambda piece: True) for _ in range(3)]
    world = World(GRID, liars)
    seconds = world.run(limit=90)
    assert world.scheduler.verdict is Verdict.SUSPECT
    assert seconds < 5


def test_gives_up_when_every_mirror_is_silent():
    world = World(GRID, [steady(0), steady(0)])
    seconds = world.run(limit=GIVE_UP_SECONDS + 30)
    assert world.scheduler.verdict is not None
    assert seconds >= 30


def test_gives_up_soon_when_every_mirror_refuses():
    refusing = [SimMirror(rate=lambda now: 0, failure=transient()) for _ in range(3)]
    world = World(GRID, refusing)
    seconds = world.run(limit=15)
    assert world.scheduler.verdict is Verdict.EXHAUSTED
    assert 5 < seconds < 15
    assert all(1 < mirror.asked <= 4 for mirror in refusing)


def test_a_mirror_that_asks_for_a_pause_gets_it():
    busy = SimMirror(
        rate=lambda now: 30 * MiB, failure=Failure(FailureKind.BUSY, "busy", retry_after=3.0)
    )
    world = World(GRID, [busy])
    while world.now < 2.9:
        world.step(0.05)
    assert busy.asked == 1
    busy.failure = None
    world.run(limit=30)
    assert world.scheduler.is_complete


def test_is_over_at_once_when_the_only_mirror_asks_for_an_hour():
    failure = Failure(FailureKind.BUSY, "busy", retry_after=3600.0)
    world = World(GRID, [SimMirror(rate=lambda now: 0, failure=failure)])
    assert world.run(limit=90) < 1
    assert world.scheduler.verdict is Verdict.SILENT


def test_what_a_reader_waits_for_comes_next():
    world = World(GRID, [steady(20), steady(10)])
    while world.now < 1:
        world.step(0.05)
    last = GRID.count - 1
    world.scheduler.want(last, last + 1)
    world.decide()
    asked = world.now
    while world.scheduler.table.states[last] != HELD:
        world.step(0.05)
        assert world.now < asked + 1.5
    world.run(limit=40)


def test_a_reader_behind_a_stalled_mirror_is_served_by_another():
    stalling = SimMirror(rate=lambda now: 20 * MiB if now < 0.5 else 0)
    world = World(GRID, [stalling, steady(20)])
    while world.now < 1:
        world.step(0.05)
    hole = next(p for p in range(GRID.count) if world.scheduler.table.states[p] != HELD)
    world.scheduler.want(hole, hole + 1)
    asked = world.now
    while world.scheduler.table.states[hole] != HELD:
        world.step(0.05)
        assert world.now < asked + 4


def test_a_mirror_without_ranges_is_the_last_resort():
    world = World(GRID, [steady(20), steady(20)])
    world.step(0.05)
    run = next(r for r in world.scheduler.runs.values() if r.mirror == 1)
    world.scheduler.found_rangeless(run.id)
    world.run(limit=60)
    assert world.mirrors[1].asked == 1


def test_a_mirror_without_ranges_sends_all_if_it_is_alone():
    world = World(GRID, [steady(100)])
    world.step(0.05)
    world.scheduler.found_rangeless(next(iter(world.scheduler.runs)))
    world.run(limit=60)
    assert world.mirrors[0].asked == 1


@pytest.mark.parametrize("rates", [(50, 50), (50, 1), (1, 50)])
def test_of_mirrors_without_ranges_none_is_asked_for_what_another_one_brings(rates):
    world = World(GRID, [steady(rate) for rate in rates])
    world.step(0.05)
    for run in list(world.scheduler.runs):
        world.scheduler.found_rangeless(run)
    world.run(limit=600)
    # Each request would bring all that is in front once more.
    assert world.requests <= 6


def _random_world(seed: int) -> tuple[World, float]:
    chance = random.Random(seed)
    grid = Grid(chance.randint(1, 200) * MiB + chance.randint(0, 5000), chance.choice([1, 4]) * MiB)
    mirrors = [steady(chance.choice([5.0, 20.0, 50.0]))]
    for _ in range(chance.randint(0, 9)):
        speed = chance.choice([0.0, 0.01, 1.0, 5.0, 20.0, 50.0])
        until = chance.choice([1.0, 3.0, 1e9])
        mirrors.append(
            SimMirror(
                rate=lambda now, speed=speed, until=until: speed * MiB if now < until else 0.0,
                latency=chance.choice([0.001, 0.05, 0.3]),
                lies=chance.choice([lambda p: False, lambda p: False, lambda p: p % 3 == 0]),
                failure=chance.choice([None, None, transient()]),
                fails_after=chance.choice([0, 3 * MiB, 30 * MiB]),
            )
        )
    # Four liars that agree are the document's fault, as far as anybody can tell.
    for mirror in [m for m in mirrors if m.lies(0)][3:]:
        mirror.lies = lambda piece: False
    honest_rate = mirrors[0].rate(0)
    chance.shuffle(mirrors)
    return World(grid, mirrors), grid.size / honest_rate


@pytest.mark.parametrize("seed", range(150))
def test_random_worlds_end_right_and_in_time(seed):
    """One steady honest mirror among up to nine others of every kind."""
    world, alone = _random_world(seed)
    chance = random.Random(seed)
    # 1.3 of what the good mirror needs alone, and some seconds for rests and silences.
    limit = 1.3 * alone + 12
    while not world.is_over:
        world.step(0.05)
        if chance.random() < 0.02:
            first = chance.randrange(world.grid.count)
            world.scheduler.want(first, min(first + 2, world.grid.count))
        assert world.now < limit, f"{world.now:.1f} s of {limit:.1f}: {world.describe()}"
    assert world.scheduler.is_complete
    assert sorted(world.held) == list(range(world.grid.count))


def seconds_an_event(count: int) -> float:
    """Of this process, with so many pieces; what other processes do does not count."""
    scheduler = Scheduler(Grid(count * 4096, 4096), 200)
    scheduler.begin([], 0.0)
    asks = [a for a in scheduler.decide(0.0) if isinstance(a, Ask)]
    begun, events = time.process_time(), 0
    for ask in asks:
        for piece in range(ask.first, min(ask.first + 500, ask.end)):
            scheduler.piece_arrived(ask.run, piece, 0.1, matches=True, digest=b"")
            events += 1
    assert events >= 1000
    return (time.process_time() - begun) / events


def test_a_million_pieces_cost_no_more_per_event():
    few = min(seconds_an_event(10_000) for _ in range(3))
    many = min(seconds_an_event(1_000_000) for _ in range(3))
    # In proportion it would be a hundred times as much.
    assert many < 20 * few, f"{many * 1e6:.0f} us an event instead of {few * 1e6:.0f}"


def test_wrong_pieces_of_one_answer_are_one_offence():
    scheduler = Scheduler(Grid(64 * MiB, MiB), 2)
    scheduler.begin([], 0.0)
    ask = next(a for a in scheduler.decide(0.0) if isinstance(a, Ask))
    for piece in range(ask.first, ask.first + 3):
        scheduler.piece_arrived(ask.run, piece, 0.1, matches=False, digest=b"wrong")
    standing = scheduler.mirrors[ask.mirror]
    assert (standing.rejected, standing.out) == (1, None)
    assert Cancel(ask.run, standing.last_error) in scheduler.decide(0.1)
    scheduler.run_ended(ask.run, 0.2)
    for number in range(2):
        again = [a for a in scheduler.decide(1.0 + number) if isinstance(a, Ask)]
        for other in again:
            if other.mirror == ask.mirror:
                scheduler.piece_arrived(other.run, other.first, 1.5, matches=False, digest=b"wrong")
                scheduler.run_ended(other.run, 1.6)
    assert standing.out is not None


class SchedulerMachine(RuleBasedStateMachine):
    """Events in any order that a shell could see; World.check holds after each."""

    def __init__(self) -> None:
        super().__init__()
        mirrors = [SimMirror(rate=lambda now: 0.0, latency=0.0) for _ in range(4)]
        self.world = World(Grid(23 * MiB + 5, 1 * MiB), mirrors, claim=0)
        self.world.decide()

    def _run_id(self, pick: int) -> int:
        runs = sorted(self.world.runs)
        return runs[pick % len(runs)]

    @precondition(lambda self: self.world.runs)
    @rule(pick=st.integers(0, 9), part=st.floats(0.1, 3.0))
    def bytes_arrive(self, pick, part):
        run = self.world.runs[self._run_id(pick)]
        mirror = self.world.mirrors[run.mirror]
        mirror.rate = lambda now: part * MiB / 0.05
        self.world.now += 0.05
        self.world._move(self._run_id(pick), 0.05)
        mirror.rate = lambda now: 0.0
        self.world.decide()

    @precondition(lambda self: self.world.runs)
    @rule(pick=st.integers(0, 9))
    def next_piece_is_wrong(self, pick):
        run = self.world.runs[self._run_id(pick)]
        mirror = self.world.mirrors[run.mirror]
        mirror.rate, mirror.lies = (lambda now: MiB / 0.05), (lambda piece: True)
        self.world._move(self._run_id(pick), 0.05)
        mirror.rate, mirror.lies = (lambda now: 0.0), (lambda piece: False)
        self.world.decide()

    @precondition(lambda self: self.world.runs)
    @rule(pick=st.integers(0, 9), kind=st.sampled_from(list(FailureKind)))
    def run_fails(self, pick, kind):
        self.world._end(self._run_id(pick), Failure(kind, "broke"))
        self.world.decide()

    @rule(seconds=st.floats(0.01, 8.0))
    def time_passes(self, seconds):
        self.world.step(seconds)

    @rule(piece=st.integers(0, 23), count=st.integers(1, 3))
    def somebody_wants(self, piece, count):
        self.world.scheduler.want(piece, min(24, piece + count))
        self.world.decide()

    @precondition(lambda self: self.world.held)
    @rule(pick=st.integers(0, 99), mirror=st.integers(0, 3))
    def a_piece_is_suspect(self, pick, mirror):
        piece = self.world.held.pop(pick % len(self.world.held))
        self.world.scheduler.fetch_again(piece, [mirror])
        self.world.decide()

    @invariant()
    def ends_only_with_everything_or_a_reason(self):
        if self.world.scheduler.is_complete:
            assert len(self.world.held) == self.world.grid.count
        elif not self.world.runs and self.world.scheduler.verdict is None:
            # Nobody works: then everybody who could rests, and the end of that is known.
            now, mirrors = self.world.now, self.world.scheduler.mirrors
            assert not any(m.is_usable(now) for m in mirrors if m.is_tried)


SchedulerMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestScheduler = SchedulerMachine.TestCase
