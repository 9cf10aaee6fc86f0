"""How failures rest."""

from ddfs import errors
from ddfs.spool.rest import PAUSES_SECONDS, Demand, after_failure

ERROR = errors.ChecksumError("wrong")


def test_pauses_grow_and_end_growing() -> None:
    resting = None
    pauses = []
    for _ in range(len(PAUSES_SECONDS) + 3):
        resting = after_failure(resting, ERROR, now=1000.0)
        pauses.append(resting.until - 1000.0)
    assert pauses[: len(PAUSES_SECONDS)] == list(PAUSES_SECONDS)
    assert set(pauses[len(PAUSES_SECONDS) :]) == {PAUSES_SECONDS[-1]}
    assert not resting.is_tried_by_itself


def test_who_may_cut_a_rest_short() -> None:
    resting = after_failure(None, ERROR, now=100.0)
    assert resting.is_tried_by_itself
    assert not resting.allows(109.9, Demand.READER)
    assert resting.allows(110.0, Demand.READER)
    assert not resting.allows(104.9, Demand.START)
    assert resting.allows(105.0, Demand.START)
    assert resting.allows(100.0, Demand.HAND)


def test_what_is_not_signed_is_tried_again_by_hand_alone() -> None:
    resting = after_failure(None, errors.SignatureError("wrong"), now=100.0)
    assert not resting.is_tried_by_itself
    assert [d for d in Demand if resting.allows(1e9, d)] == [Demand.HAND]
    assert str(resting.reason(100.0)) == "wrong; it is tried again only with ddfs prefetch"
