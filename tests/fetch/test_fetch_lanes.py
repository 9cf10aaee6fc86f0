"""Several connections to one mirror: opened when the sum grows, closed when it does not."""

from __future__ import annotations

import pytest
from fetch_simulator import SimMirror, World
from fetch_target import fetch, manifest_of, random_bytes

from ddfs import errors
from ddfs.fetch.lanes import MAX_LANES, Lanes
from ddfs.fetch.mirrors import Failure, FailureKind
from ddfs.fetch.state import Verdict
from ddfs.model import Grid, MiB
from tests.mirrorlab.mirrorlab import MirrorLab

GRID = Grid(512 * MiB, 4 * MiB)


def play(lanes: Lanes, link: float, each: float, seconds: float = 20.0) -> int:
    """*lanes* on a link of *link* bytes per second, *each* at most for a connection."""
    now = 0.0
    while now < seconds:
        rate = min(link, lanes.width * each)
        lanes.consider(now, rate=rate, measured=True, seconds_left=100.0)
        now += 0.05
    return lanes.width


@pytest.mark.parametrize(
    ("link", "each", "width"),
    [(10.0, 10.0, 1), (10.0, 9.0, 1), (10.0, 5.0, 2), (10.0, 3.0, 4), (100.0, 5.0, MAX_LANES)],
)
def test_opens_as_many_as_help(link, each, width):
    assert play(Lanes(), link, each) == width


def test_opens_none_for_what_is_nearly_here_nor_before_the_rate_is_known():
    lanes = Lanes()
    for tenth in range(100):
        lanes.consider(tenth / 10, rate=1.0, measured=True, seconds_left=3.0)
        lanes.consider(tenth / 10, rate=1.0, measured=False, seconds_left=99.0)
        lanes.consider(tenth / 10, rate=0.0, measured=True, seconds_left=None)
    assert lanes.width == 1


def test_opens_none_again_where_one_was_refused():
    lanes = Lanes()
    play(lanes, 10.0, 1.0, 3.0)
    assert lanes.width == 2
    lanes.refused(1)
    assert play(lanes, 10.0, 1.0) == 1


def test_keeps_those_that_were_accepted_before():
    lanes = Lanes()
    play(lanes, 10.0, 1.0, 5.0)
    assert lanes.width == 4
    for refused in (2, 3):
        lanes.refused(refused)
        assert lanes.width == 2
    lanes.refused(1)
    assert lanes.width == 1


def simulate(mirror: SimMirror, limit: float) -> World:
    world = World(GRID, [mirror], lanes=MAX_LANES)
    world.run(limit=limit, step=0.05)
    return world


def test_a_mirror_that_limits_each_connection_is_asked_over_several():
    world = simulate(SimMirror(lambda now: 5 * MiB, total=40 * MiB), limit=30)
    assert world.scheduler.is_complete
    assert world.requests <= 60


def test_a_mirror_that_limits_the_sum_is_left_with_one():
    world = simulate(SimMirror(lambda now: 1000 * MiB, total=20 * MiB), limit=512 / 20 * 1.05)
    assert world.scheduler.lanes.width == 1
    assert world.requests <= 20


def test_a_server_that_refuses_the_second_is_left_with_one():
    world = simulate(SimMirror(lambda now: 10 * MiB, most=1), limit=512 / 10 * 1.1)
    assert world.scheduler.is_complete
    assert world.scheduler.lanes.width == 1
    assert world.scheduler.mirrors[0].out is None


def test_a_server_that_refuses_the_third_keeps_its_two():
    mirror = SimMirror(lambda now: 10 * MiB, total=20 * MiB, most=2)
    world = simulate(mirror, limit=512 / 20 * 1.3)
    assert world.scheduler.lanes.width == 2


def test_connections_to_a_mirror_that_lies_are_one_liar():
    mirror = SimMirror(lambda now: 5 * MiB, lies=lambda piece: piece >= 40)
    world = simulate(mirror, limit=100)
    assert world.scheduler.verdict is Verdict.EXHAUSTED
    assert world.blamed == [0]


def test_is_over_when_the_mirror_is_gone_however_many_connections_it_had():
    gone = Failure(FailureKind.FINAL, "refuses (HTTP 404)")
    mirror = SimMirror(lambda now: 5 * MiB, failure=gone, fails_after=200 * MiB)
    world = simulate(mirror, limit=100)
    assert world.scheduler.verdict is Verdict.EXHAUSTED
    world = simulate(SimMirror(lambda now: 5 * MiB, failure=gone), limit=1)
    assert world.requests == 1


async def test_statistics_count_all_connections_as_their_mirror(tmp_path, monkeypatch):
    monkeypatch.setattr("ddfs.fetch.lanes.TRIAL_SECONDS", 0.3)
    monkeypatch.setattr("ddfs.fetch.lanes.MIN_SECONDS_LEFT", 0.5)
    monkeypatch.setattr("ddfs.fetch.lanes.GAIN", 0.0)
    content = random_bytes(32 * MiB)
    async with MirrorLab() as lab:
        url = lab.mirror(content, rate=10 * MiB)
        done = await fetch(manifest_of(content, [url]), tmp_path / "partial")
        assert done.content == content
        assert lab[url].connections > 1
        (mirror,) = done.report.statistics.mirrors
        assert (mirror.url, mirror.state) == (url, "idle")
        assert mirror.bytes_received == len(content) + done.report.statistics.refetched_bytes


async def test_a_mirror_that_refuses_is_named_once(tmp_path):
    content = random_bytes(MiB)
    async with MirrorLab() as lab:
        url = lab.mirror(content, fault="404")
        with pytest.raises(errors.MirrorsExhaustedError) as caught:
            await fetch(manifest_of(content, [url]), tmp_path / "partial")
        assert [failure.url for failure in caught.value.failures] == [url]
