"""20,000 inputs from outside: each is taken or refused with one line, soon, and forgotten.

``contrib/fuzz`` runs more of them; what it finds is kept in ``corpus/`` and fed here first.
"""

import pytest

from tests.fuzz.campaign import run
from tests.fuzz.targets import TARGETS, Target

INPUTS = 20_000 // len(TARGETS)

# The pool of inputs itself, and what allocators keep; a leak of a KiB an input is more.
MAX_GROWTH_KIB = 32 * 1024


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_input_crashes_hangs_or_stays(target: Target) -> None:
    report = run(target, INPUTS, seed=1)
    assert report.failures == []
    assert report.inputs >= INPUTS
    # Else the inputs are all alike, and this shows nothing.
    assert report.outcomes >= 2
    assert report.growth_kib < MAX_GROWTH_KIB
