import math

from hypothesis import given
from hypothesis import strategies as st

from ddfs.virt.debounce import Debounce, Pauses


def test_debounce_waits_until_it_is_quiet_but_not_for_ever():
    changes = Debounce(quiet=1, latest=5)
    assert changes.due == math.inf
    changes.changed(10)
    assert changes.due == 11
    changes.changed(10.5)
    assert changes.due == 11.5
    for now in (11, 12, 13, 14, 14.5):
        changes.changed(now)
    assert changes.due == 15
    changes.taken()
    assert changes.due == math.inf
    changes.changed(15)
    assert changes.due == 16


def test_debounce_waits_longer_for_what_takes_long():
    changes = Debounce(quiet=1, latest=5)
    changes.took(4)
    changes.changed(10)
    assert changes.due == 14
    for now in range(11, 49):
        changes.changed(now)
    assert changes.due == 50
    changes.taken()
    changes.took(0.1)
    changes.changed(60)
    assert changes.due == 61


def test_debounce_does_not_wait_for_ever_for_what_hung_once():
    changes = Debounce(quiet=1, latest=5)
    changes.took(3600)
    changes.changed(10)
    assert changes.due <= 20


@given(st.lists(st.floats(0, 100), min_size=1))
def test_debounce_acts_between_quiet_and_latest(times):
    changes = Debounce(quiet=1, latest=5)
    first = None
    for now in sorted(times):
        if now >= changes.due:
            changes.taken()
            first = None
        changes.changed(now)
        first = now if first is None else first
        assert changes.due >= min(now + 1, first + 5)
        assert changes.due <= first + 5


def test_pauses_grow_to_a_limit_and_begin_again():
    pauses = Pauses(1, 10)
    assert [pauses.failed() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    pauses.succeeded()
    assert pauses.failed() == 1
