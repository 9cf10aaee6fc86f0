"""Limits over the API: shown to all, changed by those who may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.control.client import Client
from ddfs.control.messages import ChangeLimits, Limits
from tests.control.fake import FakeService, RunningDaemon, running


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running(FakeService(), tmp_path) as found:
        yield found


def test_limits_are_shown_and_changed(daemon: RunningDaemon) -> None:
    client = Client(daemon.path, daemon.reader_path)
    assert client.limits() == Limits(0, 0, 16, 4)
    changed = client.change_limits(ChangeLimits(bandwidth=1_000_000, fetches_at_once=2))
    assert changed == Limits(1_000_000, 0, 16, 2) == client.limits()
    with pytest.raises(errors.InvalidValueError, match="fetches at once"):
        client.change_limits(ChangeLimits(fetches_at_once=0))


def test_the_reader_socket_only_shows(daemon: RunningDaemon) -> None:
    reader = Client(daemon.reader_path, daemon.reader_path)
    assert reader.limits() == Limits(0, 0, 16, 4)
    with pytest.raises(errors.RequestError, match="this socket only reads"):
        reader.change_limits(ChangeLimits(bandwidth=1_000_000))
    assert reader.limits() == Limits(0, 0, 16, 4)
