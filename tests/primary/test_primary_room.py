from hypothesis import given
from hypothesis import strategies as st

from ddfs.model import GiB, MiB
from ddfs.primary.room import SPARE_MAX, Ledger, spare_bytes

AMOUNT = st.integers(0, 100 * GiB)


def test_room_spare_is_a_share_of_a_small_disk_and_bounded_on_a_large_one():
    assert spare_bytes(100 * MiB) == MiB
    assert spare_bytes(10_000 * GiB) == SPARE_MAX


def test_room_two_fetches_do_not_count_on_the_same_bytes():
    ledger = Ledger()
    total, free = 100 * GiB, 100 * GiB
    assert ledger.missing("a", 60 * GiB, 0, total, free) == 0
    ledger.promise("a", 60 * GiB, 0)
    assert ledger.missing("b", 60 * GiB, 0, total, free) == 20 * GiB + SPARE_MAX
    ledger.release("a")
    assert ledger.missing("b", 60 * GiB, 0, total, free) == 0


def test_room_what_is_written_is_not_counted_twice():
    ledger = Ledger()
    ledger.promise("a", 60 * GiB, 0)
    ledger.note_written("a", 50 * GiB)
    ledger.note_written("a", 40 * GiB)
    assert ledger.outstanding() == 10 * GiB
    # The file system has 50 GiB less free by now, and 10 of the rest are promised.
    assert ledger.missing("b", 39 * GiB, 0, 100 * GiB, 50 * GiB) == 0
    assert ledger.missing("b", 40 * GiB, 0, 100 * GiB, 50 * GiB) == SPARE_MAX


def test_room_resuming_needs_only_the_rest():
    ledger = Ledger()
    assert ledger.missing("a", 60 * GiB, 59 * GiB, 100 * GiB, 2 * GiB) == 0
    assert ledger.missing("a", 60 * GiB, 0, 100 * GiB, 2 * GiB) == 58 * GiB + SPARE_MAX


def test_room_asking_again_does_not_count_against_oneself():
    ledger = Ledger()
    ledger.promise("a", 60 * GiB, 0)
    assert ledger.missing("a", 70 * GiB, 0, 100 * GiB, 100 * GiB) == 0


@given(st.lists(st.tuples(st.sampled_from("abcd"), AMOUNT), max_size=20), AMOUNT)
def test_room_promises_never_exceed_what_is_free(wishes, free):
    ledger = Ledger()
    total = 200 * GiB
    for content, wanted in wishes:
        if ledger.missing(content, wanted, 0, total, free) == 0:
            ledger.promise(content, wanted, 0)
        assert ledger.outstanding() <= max(0, free - spare_bytes(total))


def test_room_what_is_kept_free_is_nobodys():
    ledger = Ledger()
    assert ledger.missing("a", 60 * GiB, 0, 100 * GiB, 100 * GiB, keep_free=40 * GiB) == 0
    assert ledger.missing("a", 61 * GiB, 0, 100 * GiB, 100 * GiB, keep_free=40 * GiB) == GiB
    # Less than what is never promised anyway changes nothing.
    assert ledger.missing("a", 100 * GiB, 0, 100 * GiB, 100 * GiB, keep_free=1) == SPARE_MAX


def test_room_quota_counts_what_is_held_promised_and_written():
    ledger = Ledger()
    quota = 10 * GiB
    assert ledger.over_quota("a", 6 * GiB, 0, 4 * GiB, quota) == 0
    ledger.promise("a", 6 * GiB, 0)
    assert ledger.over_quota("b", GiB, 0, 4 * GiB, quota) == GiB
    # As much is promised, however far the fetch has come; asking again is no second time.
    ledger.note_written("a", 5 * GiB)
    assert ledger.over_quota("b", GiB, 0, 4 * GiB, quota) == GiB
    assert ledger.over_quota("a", 6 * GiB, 5 * GiB, 4 * GiB, quota) == 0
    # A partial file may have become larger than what was promised.
    assert ledger.over_quota("b", 4 * GiB, 5 * GiB, 0, quota) == GiB


@given(st.lists(st.tuples(st.sampled_from("abcd"), AMOUNT), max_size=20), AMOUNT, AMOUNT)
def test_room_promises_never_exceed_the_quota(wishes, quota, held):
    ledger = Ledger()
    for content, wanted in wishes:
        if ledger.over_quota(content, wanted, 0, held, quota) == 0:
            ledger.promise(content, wanted, 0)
        assert ledger.promised() <= max(0, quota - held)
