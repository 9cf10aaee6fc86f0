from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfs.fetch.blame import MAX_ALONE, MOST_PIECES, UNKNOWN, Inquest

RIGHT = b"right"


def play(
    pieces: int,
    sources: list[int],
    lies: dict[int, set[int]],
    mirrors: int,
    *,
    agree: bool = False,
):
    """Carry out an inquest's plans against mirrors that lie about the pieces in *lies*.

    Where they *agree*, they all tell the same lie. Returns the inquest, how often
    the whole file was compared, as the transfer does, and how many pieces were fetched again.
    """

    def sent(mirror: int, piece: int) -> bytes:
        if piece not in lies.get(mirror, set()):
            return RIGHT
        return b"wrong" if agree else b"wrong %d" % mirror

    inquest = Inquest(sources, [sent(source, piece) for piece, source in enumerate(sources)])
    comparisons, fetched = 1, 0
    while any(digest != RIGHT for digest in inquest.digests):
        if comparisons == 3 + MAX_ALONE:
            return inquest, comparisons, fetched
        usable = list(range(mirrors))
        while plan := inquest.plan(usable):
            todo = dict(plan)
            while todo:
                piece, not_from = todo.popitem()
                choice = [m for m in usable if m not in not_from] or usable
                fetched += 1
                mirror = choice[piece % len(choice)]
                todo |= inquest.heard(piece, mirror, sent(mirror, piece), usable)
                assert fetched < 100 * pieces
        if not inquest.has_news:
            return inquest, comparisons, fetched
        comparisons += 1
        if any(digest != RIGHT for digest in inquest.digests):
            inquest.compared()
    return inquest, comparisons, fetched


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(0, 3),
    st.sets(st.integers(0, 59), min_size=1),
)
def test_one_liar_among_four_is_always_found_and_nobody_else(sources, liar, wrong):
    inquest, comparisons, _ = play(len(sources), sources, {liar: wrong}, 4)
    assert all(digest == RIGHT for digest in inquest.digests)
    assert comparisons <= 3
    assert set(inquest.liars) <= {liar}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=60), st.integers(0, 1))
def test_of_two_mirrors_one_is_right(sources, liar):
    wrong = set(range(len(sources)))
    inquest, comparisons, _ = play(len(sources), sources, {liar: wrong}, 2)
    assert all(digest == RIGHT for digest in inquest.digests)
    assert comparisons <= 3


@pytest.mark.parametrize("liar", range(4))
def test_who_lies_everywhere_is_found_at_once(liar):
    sources = [piece // 8 % 4 for piece in range(400)]
    inquest, comparisons, fetched = play(400, sources, {liar: set(range(400))}, 4)
    assert inquest.liars == [liar]
    assert comparisons == 2
    assert fetched < 100 + 50  # its share, and the first few of the others


@pytest.mark.parametrize("place", [0, 17, 200, 399])
def test_one_wrong_piece_costs_each_piece_once_more_at_most(place):
    sources = [piece // 8 % 4 for piece in range(400)]
    inquest, comparisons, fetched = play(400, sources, {sources[place]: {place}}, 4)
    assert inquest.liars == [sources[place]]
    assert comparisons == 2
    # What the liar sends once it is suspected counts for nothing.
    assert fetched <= 400 + 2 * MOST_PIECES


def test_of_two_the_one_that_sent_most_is_looked_at_first():
    """It is the faster one, which has the rest soonest."""
    inquest = Inquest([0, 1, 1, 1], [b"a", b"b", b"c", b"d"])
    assert inquest.plan([0, 1]) == {0: frozenset({0})}
    assert inquest.alone == 1
    assert inquest.opinion(1, 1) == b"b"
    assert inquest.needed_later(range(4)) == [0]
    inquest.heard(0, 1, b"x", [0, 1])
    assert inquest.plan([0, 1]) == {}
    inquest.compared()
    assert set(inquest.plan([0, 1])) == {0, 1, 2, 3}
    # It is known what it sent, though it is not there any more.
    assert inquest.alone == 0
    assert inquest.opinion(0, 0) == b"a"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
    st.integers(0, 2),
    st.sets(st.integers(0, 39), min_size=1),
    st.booleans(),
)
def test_one_honest_mirror_of_three_is_enough_whatever_the_two_agree_on(
    sources, honest, wrong, agree
):
    lies = {mirror: wrong for mirror in range(3) if mirror != honest}
    inquest, _, fetched = play(len(sources), sources, lies, 3, agree=agree)
    assert all(digest == RIGHT for digest in inquest.digests)
    assert honest not in inquest.liars
    # All of it once more, and once from each of three, at most.
    assert fetched <= 5 * len(sources)


def test_a_majority_of_liars_costs_little_more_than_the_file():
    sources = [piece % 3 for piece in range(300)]
    everything = set(range(300))
    inquest, comparisons, fetched = play(
        300, sources, {0: everything, 2: everything}, 3, agree=True
    )
    assert inquest.liars == [0, 2]
    assert comparisons == 3
    assert fetched < 100 + 300 + 50


def test_where_all_lie_the_end_comes_after_a_few():
    everything = set(range(20))
    lies = dict.fromkeys(range(9), everything)
    sources = [piece % 9 for piece in range(20)]
    inquest, _, fetched = play(20, sources, lies, 9)
    assert inquest.plan(range(9)) == {}
    assert fetched <= (MAX_ALONE + 2) * 20 + 20 * 9  # nine opinions about the samples


def test_the_same_bytes_again_bring_no_news():
    inquest = Inquest([0, 0], [b"a", b"b"])
    plan = inquest.plan([0])
    assert set(plan) == {0, 1}
    for piece in plan:
        inquest.heard(piece, 0, inquest.digests[piece], [0])
    assert inquest.plan([0]) == {}
    assert not inquest.has_news


def test_a_piece_that_nobody_known_sent_is_asked_of_anybody():
    inquest = Inquest([UNKNOWN, 0], [b"a", b"b"])
    assert inquest.plan([0, 1, 2])[0] == frozenset()


def test_nobody_is_blamed_for_what_only_a_disk_says_that_he_sent():
    inquest = Inquest([0, 1], [b"rotten", b"b"])
    inquest.hearsay[0] = 0
    inquest.heard(0, 1, b"a", [0, 1])
    assert inquest.liars == []
    inquest.heard(0, 0, b"rotten", [0, 1])
    inquest.heard(0, 1, b"a", [0, 1])
    assert inquest.liars == [0]
