"""The queue of fetches: alone under random demands, and in a spool on real mirrors."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ddfs import errors
from ddfs.model import KiB, MiB, SpoolState
from ddfs.spool.queue import Place, Queue
from ddfs.spool.rest import Demand
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.test_spool_spool import CONTENT, manifest_of, world

demands = st.sampled_from(list(Demand))
steps = st.lists(
    st.tuples(st.just("enter"), demands)
    | st.tuples(st.just("leave"), st.integers(0, 30))
    | st.tuples(st.just("hasten"), st.tuples(st.integers(0, 30), demands))
    | st.tuples(st.just("change"), st.integers(1, 5)),
    max_size=60,
)


def has_turn(place: Place) -> bool:
    return place._turn.is_set()


@given(steps)
def test_no_more_than_allowed_run_and_none_is_forgotten(steps):
    queue = Queue(2)
    places: list[Place] = []
    for what, value in steps:
        had_turn = [place for place in places if has_turn(place)]
        if what == "enter":
            places.append(queue.enter(value))
        elif what == "leave" and value < len(places):
            queue.leave(places.pop(value))
        elif what == "hasten" and value[0] < len(places):
            places[value[0]].hasten(value[1])
        elif what == "change":
            queue.change(value)
        running = [place for place in places if has_turn(place)]
        waiting = [place for place in places if not has_turn(place)]
        # Who has had their turn keeps it; new ones only come within the limit.
        assert all(place in running for place in had_turn if place in places)
        if len(running) > queue.at_once:
            assert set(running) <= set(had_turn)
        assert not waiting or len(running) >= queue.at_once
    # In the end everybody had their turn.
    while places:
        assert any(map(has_turn, places))
        queue.leave(places.pop(next(at for at, place in enumerate(places) if has_turn(place))))


async def test_by_hand_and_starts_before_reads_before_retries():
    queue = Queue(1)
    running = queue.enter(Demand.READER)
    wanted = [Demand.RETRY, Demand.READER, Demand.START, Demand.HAND, Demand.READER]
    places = {at: queue.enter(demand) for at, demand in enumerate(wanted)}
    places[4].hasten(Demand.START)
    places[4].hasten(Demand.RETRY)
    came: list[int] = []

    async def take(at: int) -> None:
        async with places[at]:
            came.append(at)

    async with trio.open_nursery() as nursery:
        for at in places:
            nursery.start_soon(take, at)
        await trio.testing.wait_all_tasks_blocked()
        assert came == []
        queue.leave(running)
    assert came == [2, 3, 4, 1, 0]


async def test_a_cancelled_wait_gives_its_place_up():
    queue = Queue(1)
    first, second, third = (queue.enter(Demand.READER) for _ in range(3))
    async with first:
        with trio.move_on_after(0.01) as scope:
            async with second:
                raise AssertionError("it is not its turn")
        assert scope.cancelled_caught
    with trio.fail_after(90):
        async with third:
            pass


async def test_a_queued_fetch_is_on_its_way_and_comes_when_there_is_room(tmp_path: Path) -> None:
    contents = [CONTENT[: 2 * MiB], CONTENT[MiB : 3 * MiB], CONTENT[2 * MiB : 4 * MiB]]
    async with MirrorLab() as lab:
        manifests = [manifest_of(c, [lab.mirror(c, rate=KiB)]) for c in contents]
        async with world(tmp_path) as host:
            orders = [host.knows(manifest) for manifest in manifests]
            spool = host.spool
            spool.queue.change(1)
            spool.demand(orders[0])
            spool.demand(orders[1])
            spool.demand(orders[2])
            # The last one is wanted by somebody who waits.
            spool.demand(orders[2], Demand.HAND)
            urls = [manifest.mirrors[0].url for manifest in manifests]
            with trio.fail_after(90):
                while not lab[urls[0]].requests:
                    await trio.sleep(0.01)
            await trio.sleep(0.3)
            states = [spool.holding(order.content_id) for order in orders]
            assert [s.state for s in states] == [SpoolState.FETCHING] * 3
            assert [s.bytes_per_second for s in states[1:]] == [0.0, 0.0]
            assert [lab[url].requests > 0 for url in urls] == [True, False, False]
            lab[urls[0]].rate = lab[urls[2]].rate = None
            with trio.fail_after(90):
                await spool.wait_published(orders[2])
                assert spool.published(orders[0].content_id) is not None
                assert spool.published(orders[1].content_id) is None
                lab[urls[1]].rate = None
                # A reader that waits in a queued fetch gets its bytes as any other.
                await spool.wait_published(orders[1])


async def test_a_queued_fetch_can_be_cancelled(tmp_path: Path) -> None:
    contents = [CONTENT[: 2 * MiB], CONTENT[MiB : 3 * MiB]]
    async with MirrorLab() as lab:
        manifests = [manifest_of(c, [lab.mirror(c, rate=KiB)]) for c in contents]
        async with world(tmp_path) as host:
            orders = [host.knows(manifest) for manifest in manifests]
            host.spool.queue.change(1)
            for order in orders:
                host.spool.demand(order)
            await trio.sleep(0.2)
            failures: list[errors.DdfsError] = []

            async def wait() -> None:
                try:
                    await host.spool.wait_published(orders[1])
                except errors.DdfsError as error:
                    failures.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.1)
                assert host.spool.cancel(orders[1].content_id)
            assert [type(failure) for failure in failures] == [errors.CancelledFetchError]
            assert not host.spool.is_fetching(orders[1].content_id)
            lab[manifests[0].mirrors[0].url].rate = None
            with trio.fail_after(90):
                await host.spool.wait_published(orders[0])
            assert lab[manifests[1].mirrors[0].url].requests == 0
