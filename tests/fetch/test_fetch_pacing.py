"""Limits: the pure buckets in simulated time, and what real fetches keep to."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from fetch_target import file_target, manifest_of, random_bytes
from hypothesis import given
from hypothesis import strategies as st

from ddfs.fetch.pacing import BURST_SECONDS, Pace, Pacer, Pacing, Share, Ticket
from ddfs.fetch.runs import Ask, Cancel
from ddfs.fetch.scheduler import SILENCE_SECONDS, Scheduler
from ddfs.fetch.transfer import Transfer
from ddfs.fetch.transport import Transport
from ddfs.model import Grid, KiB, MiB
from tests.mirrorlab.mirrorlab import MirrorLab

QUANTUM = 16 * KiB

rates = st.none() | st.integers(64 * KiB, 64 * MiB)


class Simulated:
    """Fetches that always want more: each has so many connections, each with one ticket."""

    def __init__(self, pacing: Pacing, connections: list[int]) -> None:
        self.pacing = pacing
        self.shares = [Share() for _ in connections]
        self.had = [0] * len(connections)
        self.now = 0.0
        for share, count in zip(self.shares, connections, strict=True):
            for _ in range(count):
                pacing.ask(Ticket(share, QUANTUM))

    def run(self, seconds: float, most: int = 20_000) -> None:
        end = self.now + seconds
        for _ in range(most):
            granted = self.pacing.grant(self.now)
            for ticket in granted:
                at = self.shares.index(ticket.share)
                self.had[at] += ticket.count
                self.pacing.ask(Ticket(ticket.share, QUANTUM))
            wait = self.pacing.seconds_to_next()
            assert wait is not None
            if self.now + wait > end:
                self.now = end
                return
            # A clock never wakes too early by more than its grain.
            self.now += wait + 1e-6
        raise AssertionError("too many rounds: it does not get on")


@given(
    total=st.integers(64 * KiB, 8 * MiB),
    each=st.none() | st.integers(64 * KiB, 8 * MiB),
    connections=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    seconds=st.floats(0.5, 5.0),
)
def test_limits_are_kept_used_and_shared(total, each, connections, seconds):
    simulated = Simulated(Pacing(total, each), connections)
    simulated.run(seconds)
    count = len(connections)
    for had in simulated.had:
        if each is not None:
            assert had <= each * (seconds + BURST_SECONDS) + QUANTUM
    assert sum(simulated.had) <= total * (seconds + BURST_SECONDS) + QUANTUM
    # Nobody has less than an equal share, or what its own limit lets it have.
    fair = min(total / count, each if each is not None else total)
    assert min(simulated.had) >= 0.98 * fair * seconds - count * QUANTUM


@given(
    before=rates, after=st.integers(64 * KiB, 8 * MiB), connections=st.lists(st.just(3), max_size=4)
)
def test_a_change_counts_at_once(before, after, connections):
    pacing = Pacing(before if before is not None else 1 * MiB)
    simulated = Simulated(pacing, [1, *connections])
    simulated.run(1.0)
    had = sum(simulated.had)
    pacing.change(after, None)
    simulated.run(2.0)
    more = sum(simulated.had) - had
    # What was a debt at the old rate takes at most a second to be worked off.
    assert 0.9 * after - 5 * QUANTUM <= more <= after * (2.0 + BURST_SECONDS) + 5 * QUANTUM


def test_unused_time_is_not_saved_up():
    pacing = Pacing(1 * MiB)
    simulated = Simulated(pacing, [1])
    simulated.run(10.0)
    late = Share()
    simulated.shares.append(late)
    simulated.had.append(0)
    pacing.ask(Ticket(late, QUANTUM))
    before = simulated.had[0]
    simulated.run(2.0)
    first, second = simulated.had[0] - before, simulated.had[1]
    assert second - first <= 0.3 * MiB
    assert first >= 0.8 * MiB


def test_a_dropped_ticket_is_never_granted():
    pacing = Pacing(64 * KiB)
    share = Share()
    tickets = [Ticket(share, 64 * KiB) for _ in range(3)]
    for ticket in tickets:
        pacing.ask(ticket)
    assert pacing.grant(0.0) == tickets[:1]
    pacing.drop(tickets[1])
    pacing.drop(tickets[0])
    assert pacing.grant(1.5) == tickets[2:]
    assert pacing.seconds_to_next() is None


def test_an_abort_ends_the_wait_and_others_go_on():
    pacer = Pacer(64 * KiB)
    pace = Pace(pacer)
    ended: Counter[str] = Counter()
    aborted = threading.Event()
    wakes = [threading.Event() for _ in range(2)]

    def pay(name: str, count: int, wake: threading.Event, stops: bool) -> None:
        pace.pay(count, wake, aborted.is_set if stops else lambda: False)
        ended[name] += 1

    pace.pay(16 * MiB, threading.Event(), lambda: False)  # a debt of some minutes
    threads = [
        threading.Thread(target=pay, args=("aborted", QUANTUM, wakes[0], True)),
        threading.Thread(target=pay, args=("patient", QUANTUM, wakes[1], False)),
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    assert not ended
    aborted.set()
    wakes[0].set()
    threads[0].join(90)
    assert ended == {"aborted": 1}
    pacer.change(None, None)
    threads[1].join(90)
    assert ended == {"aborted": 1, "patient": 1}


async def _run(
    manifests, directory: Path, transport: Transport, seconds: float
) -> tuple[float, list[int]]:
    """Runs all at once for some seconds; how many, and the bytes that each has received."""
    begun = trio.current_time()
    with ExitStack() as stack:
        transfers = [
            Transfer(
                manifest,
                stack.enter_context(file_target(directory / f"{at}")),
                transport,
                observer=lambda _: None,
            )
            for at, manifest in enumerate(manifests)
        ]
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for transfer in transfers:
                    nursery.start_soon(transfer.run)
        return trio.current_time() - begun, [
            sum(m.bytes_received for m in transfer.statistics().mirrors) for transfer in transfers
        ]


@pytest.mark.parametrize("by_proxy", [False, True])
async def test_a_fetch_keeps_to_its_limit_and_goes_on_without(by_proxy, tmp_path, monkeypatch):
    content = random_bytes(24 * MiB)
    async with MirrorLab() as lab, Transport() as transport:
        urls = [lab.mirror(content) for _ in range(3)]
        if by_proxy:
            # The same way through httpx; no proxy is needed to see that it pays.
            monkeypatch.setattr("ddfs.fetch.transport.uses_proxy", lambda _: True)
        transport.pacer.change(1 * MiB, None)
        with file_target(tmp_path / "x") as target:
            transfer = Transfer(
                manifest_of(content, urls), target, transport, observer=lambda _: None
            )
            async with trio.open_nursery() as nursery:
                begun = trio.current_time()
                nursery.start_soon(transfer.run)
                received = 0
                with trio.fail_after(90):
                    while received < 3 * MiB:
                        await trio.sleep(0.05)
                        received = sum(m.bytes_received for m in transfer.statistics().mirrors)
                assert received <= 1.25 * (trio.current_time() - begun) * MiB + 2 * MiB
                begun = trio.current_time()
                transport.pacer.change(None, None)
            # 20 MiB at 1 MiB/s would have taken twenty seconds more.
            assert trio.current_time() - begun < 15
            assert target.content() == content


async def test_a_fetch_with_one_mirror_has_the_share_of_one_with_ten(tmp_path):
    contents = [random_bytes(32 * MiB, seed) for seed in (1, 2)]
    async with MirrorLab() as lab, Transport() as transport:
        manifests = [
            manifest_of(content, [lab.mirror(content) for _ in range(count)])
            for content, count in zip(contents, (1, 10), strict=True)
        ]
        transport.pacer.change(2 * MiB, None)
        seconds, (one, ten) = await _run(manifests, tmp_path, transport, 3.0)
    # By connections it would be a tenth.
    assert 0.4 <= one / ten <= 2.5
    assert one + ten <= 1.25 * 2 * seconds * MiB + 4 * MiB


async def test_what_a_fetch_may_not_use_the_others_have(tmp_path):
    contents = [random_bytes(32 * MiB, seed) for seed in (1, 2)]
    async with MirrorLab() as lab, Transport() as transport:
        manifests = [
            manifest_of(contents[0], [lab.mirror(contents[0], rate=MiB // 4)]),
            manifest_of(contents[1], [lab.mirror(contents[1]) for _ in range(2)]),
        ]
        transport.pacer.change(4 * MiB, 3 * MiB)
        seconds, (slow, fast) = await _run(manifests, tmp_path, transport, 3.0)
    assert slow <= 1.25 * seconds * MiB / 4 + MiB
    # Equal shares would be no more than what the slow one has of its own.
    assert 2.5 * slow < fast <= 1.25 * 3 * seconds * MiB + 2 * MiB


async def test_a_low_limit_is_not_taken_for_silent_mirrors(tmp_path):
    content = random_bytes(8 * MiB)
    events: list = []
    async with MirrorLab() as lab, Transport() as transport:
        urls = [lab.mirror(content) for _ in range(6)]
        transport.pacer.change(64 * KiB, None)
        with file_target(tmp_path / "x") as target:
            transfer = Transfer(
                manifest_of(content, urls), target, transport, observer=events.append
            )
            with trio.move_on_after(4.0):
                await transfer.run()
        assert [m.last_error for m in transfer.statistics().mirrors] == [None] * 6
    assert events == []


async def test_connections_to_one_server_are_counted_over_all_fetches(tmp_path):
    content = random_bytes(3 * MiB)
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(content, rate=8 * MiB)
        transport.turns.change(2)
        with ExitStack() as stack:
            targets = [stack.enter_context(file_target(tmp_path / f"{at}")) for at in range(5)]
            with trio.fail_after(90):
                async with trio.open_nursery() as nursery:
                    for target in targets:
                        transfer = Transfer(
                            manifest_of(content, [url]), target, transport, observer=lambda _: None
                        )
                        nursery.start_soon(transfer.run)
            assert all(target.content() == content for target in targets)
        assert lab[url].most_open == 2


async def test_who_waits_for_a_connection_is_not_taken_for_silent_and_can_be_cancelled(tmp_path):
    content = random_bytes(3 * MiB)
    events: list = []
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(content, rate=256 * KiB)
        transport.turns.change(1)
        with ExitStack() as stack:
            first, second = (stack.enter_context(file_target(tmp_path / n)) for n in "ab")
            manifest = manifest_of(content, [url])
            ahead = Transfer(manifest, first, transport, observer=lambda _: None)
            behind = Transfer(manifest, second, transport, observer=events.append)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ahead.run)
                with trio.fail_after(90):
                    while not lab[url].connections:
                        await trio.sleep(0.01)
                with trio.move_on_after(3.0):
                    await behind.run()
                figures = behind.statistics()
                assert (figures.bytes_verified, figures.mirrors[0].state) == (0, "busy")
                begun = trio.current_time()
                nursery.cancel_scope.cancel()
            assert trio.current_time() - begun < SILENCE_SECONDS
    assert events == []
    assert lab[url].connections == 1


def test_a_run_that_is_held_back_is_not_silent():
    scheduler = Scheduler(Grid(8 * MiB, MiB), 1)
    scheduler.begin([], 0.0)
    [ask] = scheduler.decide(0.0)
    assert isinstance(ask, Ask)
    for now in range(1, 200):
        scheduler.held_back(ask.run, float(now))
        assert scheduler.decide(float(now)) == []
    assert scheduler.verdict is None
    # From then on its silence is its own.
    actions = [action for now in range(200, 240) for action in scheduler.decide(float(now))]
    assert actions == [Cancel(ask.run, "did not answer for 30 s")]
