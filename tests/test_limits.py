"""The limits of a running host: from the settings, and changed as one."""

from __future__ import annotations

import pytest

from ddfs import config, errors
from ddfs.fetch.transport import Transport
from ddfs.limits import HostLimits, Limits
from ddfs.model import MiB
from ddfs.spool.queue import Queue


async def test_settings_take_effect_and_changes_too() -> None:
    settings = config.parse(
        {"network": {"bandwidth": "8MiB", "connections_per_host": 3}, "fetch": {"at_once": 2}}
    )
    queue = Queue()
    async with Transport() as transport:
        limits = HostLimits(transport, queue, Limits.of(settings))
        assert (transport.pacer.total, transport.pacer.each) == (8 * MiB, None)
        assert transport.pacer.is_limited
        assert (transport.turns.limit, queue.at_once) == (3, 2)
        changed = limits.change(bandwidth=0, bandwidth_per_fetch=MiB, fetches_at_once=None)
        assert changed == limits.now == Limits(0, MiB, 3, 2)
        assert (transport.pacer.total, transport.pacer.each) == (None, MiB)
        limits.change(bandwidth_per_fetch=0, connections_per_host=5, fetches_at_once=7)
        assert not transport.pacer.is_limited
        assert (transport.turns.limit, queue.at_once) == (5, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"bandwidth": 1},
        {"bandwidth_per_fetch": -1},
        {"connections_per_host": 0},
        {"fetches_at_once": 10**6},
    ],
)
async def test_a_refused_change_changes_nothing(change: dict[str, int]) -> None:
    async with Transport() as transport:
        limits = HostLimits(transport, Queue(), Limits.of(config.Settings()))
        before = limits.now
        with pytest.raises(errors.InvalidValueError):
            limits.change(**{"bandwidth": 5 * MiB, **change})
        assert limits.now == before
        assert not transport.pacer.is_limited


def test_the_defaults_of_the_settings_are_those_of_the_parts() -> None:
    from ddfs.fetch.turns import CONNECTIONS_PER_HOST

    assert Limits.of(config.Settings()) == Limits(0, 0, CONNECTIONS_PER_HOST, Queue().at_once)
