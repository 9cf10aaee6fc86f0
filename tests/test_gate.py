"""The gate's window, and how it speaks. Its answers about real templates are in system/."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddfs.gate import QUIET_SECONDS, Window, duration, with_advice


def test_all_hooks_of_a_burst_share_one_window() -> None:
    window = Window(10.0)
    assert window.deadline(100.0) == 110.0
    assert window.deadline(104.0) == 110.0
    assert window.deadline(110.0) == 110.0
    assert window.deadline(112.0) == 110.0, "closed: answered at once"


def test_it_opens_again_when_it_has_been_quiet() -> None:
    window = Window(10.0)
    window.deadline(100.0)
    window.deadline(111.0)
    assert window.deadline(111.0 + QUIET_SECONDS) == 111.0 + QUIET_SECONDS + 10.0


def test_a_single_late_hook_after_the_window_finds_it_open() -> None:
    window = Window(10.0)
    window.deadline(100.0)
    assert window.deadline(200.0) == 210.0


def test_a_window_of_no_length_never_waits() -> None:
    window = Window(0.0)
    assert window.deadline(5.0) <= 5.0
    assert window.deadline(6.0) <= 6.0


@given(st.lists(st.floats(0.0, 2.9), min_size=1, max_size=50), st.floats(0.0, 20.0))
def test_a_burst_never_waits_longer_than_one_window(gaps: list[float], length: float) -> None:
    window = Window(length)
    now = 50.0
    waits_until = window.deadline(now)
    for gap in gaps:
        now += gap
        assert window.deadline(now) == waits_until


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (19.6, "20 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5900, "98 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_time_left_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_to_do_about_a_failure_is_said_once() -> None:
    full = "t.img cannot be fetched: /p: the disk is full; free some room, then try again"
    assert with_advice(full) == full
    assert with_advice("t.img cannot be fetched: 404") == (
        "t.img cannot be fetched: 404; mend that, then try again"
    )
