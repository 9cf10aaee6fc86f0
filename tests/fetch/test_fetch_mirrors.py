from __future__ import annotations

import pytest

from ddfs.fetch.mirrors import MAX_FAILURES, Failure, FailureKind, MirrorStanding
from ddfs.fetch.widening import Widening
from ddfs.model import MiB


def test_a_rate_is_an_average_at_first_and_forgets_later():
    standing = MirrorStanding(0)
    for _ in range(10):
        standing.observe(1 * MiB, 0.05)
    assert standing.rate == pytest.approx(20 * MiB)
    for _ in range(80):
        standing.observe(2 * MiB, 0.05)
    assert standing.rate == pytest.approx(40 * MiB, rel=0.02)


def test_silence_counts():
    standing = MirrorStanding(0)
    for _ in range(40):
        standing.observe(1 * MiB, 0.05)
    before = standing.rate
    assert before is not None
    for _ in range(70):
        standing.observe(0, 0.05)
    assert standing.rate is not None
    assert standing.rate < 0.02 * before


def test_rests_grow_until_the_mirror_is_out():
    standing, now, rests = MirrorStanding(0), 100.0, []
    while standing.out is None:
        standing.fail(Failure(FailureKind.TRANSIENT, "broke"), now)
        if standing.out is None:
            assert not standing.is_usable(now)
            rests.append(standing.rests_until - now)
            now = standing.rests_until
            assert standing.is_usable(now)
    assert rests == [1.0, 2.0, 4.0]
    assert standing.failures == MAX_FAILURES


def test_a_piece_that_holds_forgives_failures():
    standing = MirrorStanding(0)
    for _ in range(3 * MAX_FAILURES):
        standing.fail(Failure(FailureKind.TRANSIENT, "broke"), 0.0)
        standing.delivered()
    assert standing.out is None


def test_retry_after_is_obeyed_and_final_is_final():
    standing = MirrorStanding(0)
    standing.fail(Failure(FailureKind.BUSY, "busy", retry_after=30.0), 5.0)
    assert standing.rests_until == 35.0
    assert standing.last_error == "busy and asks to wait for 30 s"
    standing.fail(Failure(FailureKind.FINAL, "gone"), 5.0)
    assert standing.out == standing.last_error == "gone"


def test_wrong_pieces_put_a_mirror_out_the_last_one_later():
    standing, alone = MirrorStanding(0), MirrorStanding(1)
    for _ in range(2):
        standing.reject(is_alone=False)
        alone.reject(is_alone=True)
    assert standing.out is not None
    assert alone.out is None
    alone.reject(is_alone=True)
    assert alone.out is not None


def test_what_was_left_alone_as_slow_is_tried_again_later_and_later():
    standing = MirrorStanding(0)
    waits, now = [], 0.0
    for _ in range(3):
        begun = now
        while not standing.is_worth_a_probe(now):
            now += 1
        waits.append(now - begun)
        standing.forget_rate()
    assert waits == [15, 30, 60]


def _widen(widening: Widening, rates: list[float], left: float) -> None:
    for at, rate in enumerate(rates):
        widening.consider(at * 0.2, rate=rate, measured=True, seconds_left=left, lost=0)


def test_more_mirrors_are_tried_while_the_sum_grows():
    widening = Widening(1000 * MiB, 100)
    assert widening.width == 4
    _widen(widening, [10.0, 10.0, 20.0, 30.0], left=5.0)
    assert widening.width == 4 + 1 + 2 + 4


def test_and_no_more_when_the_link_is_full():
    widening = Widening(1000 * MiB, 100)
    _widen(widening, [100.0] * 50, left=5.0)
    assert widening.width <= 6


def test_a_lost_mirror_is_replaced_at_once():
    widening = Widening(1000 * MiB, 100)
    widening.consider(0.0, rate=0.0, measured=False, seconds_left=None, lost=2)
    assert widening.width == 6


def test_a_small_file_is_asked_of_one_mirror():
    assert Widening(1 * MiB, 100).width == 1
    assert Widening(5 * MiB, 100).width == 2
    assert Widening(0, 100).width == 1


def test_hosts_come_back_at_different_times_and_never_sooner_than_asked():
    prompt, late = MirrorStanding(0), MirrorStanding(0, jitter=0.5)
    for standing in (prompt, late):
        standing.fail(Failure(FailureKind.TRANSIENT, "reset"), 10.0)
    assert (prompt.rests_until, late.rests_until) == (11.0, 11.5)
    late.fail(Failure(FailureKind.BUSY, "busy", retry_after=60.0), 20.0)
    assert late.rests_until == 81.0
