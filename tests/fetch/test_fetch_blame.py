from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ddfs.fetch.blame import UNKNOWN, Inquest

RIGHT = b"right"


def play(pieces: int, sources: list[int], lies: dict[int, set[int]], mirrors: int):
    """Carry out an inquest's plans against mirrors that lie about the pieces in *lies*.

    Returns the inquest and how often the whole file was compared, as the transfer does.
    """

    def sent(mirror: int, piece: int) -> bytes:
        return b"wrong %d" % mirror if piece in lies.get(mirror, set()) else RIGHT

    inquest = Inquest(sources, [sent(source, piece) for piece, source in enumerate(sources)])
    comparisons, fetched = 1, 0
    while any(digest != RIGHT for digest in inquest.digests):
        if comparisons == 3:
            return inquest, comparisons, fetched
        usable = [m for m in range(mirrors) if m not in inquest.liars]
        while plan := inquest.plan(usable):
            todo = dict(plan)
            while todo:
                piece, not_from = todo.popitem()
                usable = [m for m in range(mirrors) if m not in inquest.liars]
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
    assert inquest.liars <= {liar}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=60), st.integers(0, 1))
def test_of_two_mirrors_one_is_right(sources, liar):
    wrong = set(range(len(sources)))
    inquest, comparisons, _ = play(len(sources), sources, {liar: wrong}, 2)
    assert all(digest == RIGHT for digest in inquest.digests)
    assert comparisons <= 3


def test_much_damage_is_found_by_a_sample():
    sources = [piece % 4 for piece in range(400)]
    inquest, comparisons, fetched = play(400, sources, {2: set(range(400))}, 4)
    assert inquest.liars == {2}
    assert comparisons == 2
    assert fetched < 100 + 100  # its share, and some samples


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
    assert inquest.plan([0, 1])[0] == frozenset()
