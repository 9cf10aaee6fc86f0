"""What a fetch that was waited for ends with."""

import pytest

from ddfs import errors
from ddfs.cli.waiting import raise_if_missing
from tests.control.fake import make_status


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("storage-full", errors.StorageFullError),
        ("mirrors-exhausted", errors.MirrorsExhaustedError),
        (None, errors.FetchRestingError),
    ],
)
def test_a_failure_ends_the_command_as_what_it_was(
    kind: str | None, raised: type[errors.DdfsError]
) -> None:
    failed = make_status("a", state="error", last_error="no room", last_error_kind=kind)
    with pytest.raises(raised, match="no room"):
        raise_if_missing([make_status("b", state="downloaded"), failed])


def test_a_cancelled_fetch_says_so_and_a_published_one_nothing() -> None:
    with pytest.raises(errors.CancelledFetchError, match=r"a\.qcow2: the fetch was cancelled"):
        raise_if_missing([make_status("a", state="not-downloaded")])
    raise_if_missing([make_status("a", state="downloaded")])
