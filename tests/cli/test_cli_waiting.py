"""What a fetch that was waited for ends with."""

from collections.abc import Sequence

import pytest

from ddfs import errors
from ddfs.cli.waiting import describe, raise_if_missing, wait
from ddfs.control.messages import TemplateStatus
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


class Interrupted:
    """Ctrl-C at the first look."""

    def templates(self, names: Sequence[str]) -> list[TemplateStatus]:
        raise KeyboardInterrupt


@pytest.mark.parametrize("goes_on", [True, False])
def test_only_who_leaves_a_fetch_running_is_told_that_it_goes_on(
    goes_on: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        wait(Interrupted(), [make_status("a", state="downloading")], goes_on=goes_on)
    assert ("the fetch goes on" in capsys.readouterr().err) == goes_on


@pytest.mark.parametrize(
    ("host", "line"),
    [
        (None, "ddfs: the fetch goes on; end it with: ddfs cancel a\n"),
        ("rack1", "ddfs: the fetch goes on on rack1; end it there with: ddfs cancel a\n"),
    ],
)
def test_it_is_ended_where_it_runs(
    host: str | None, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        wait(Interrupted(), [make_status("a", state="downloading")], host=host)
    assert capsys.readouterr().err == line


def test_the_version_that_is_fetched_is_the_one_to_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    older = make_status("a", state="downloading", is_newest=False)
    with pytest.raises(KeyboardInterrupt):
        wait(Interrupted(), [older])
    assert capsys.readouterr().err.endswith("ddfs cancel a@1\n")


def test_it_is_said_whom_a_fetch_waits_for() -> None:
    line = describe(make_status("a", state="downloading", waits_for="east\x1b"))
    assert line.endswith("0 % of 1000 B here, waits for east\\x1b to fetch it")
