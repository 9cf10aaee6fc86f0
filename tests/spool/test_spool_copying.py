"""A content on several primary storages: fetched once, copied, and still verified."""

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from test_spool_spool import CONTENT, Heads, Inspector, manifest_of, order_of, unlock

from ddfs import errors
from ddfs.fetch.transfer import PieceRecord
from ddfs.fetch.transport import Transport
from ddfs.model import ByteRange, Manifest, MiB, PublishedFile, SpoolReference, SpoolState
from ddfs.primary.directory import DirectoryStorage
from ddfs.spool import copying
from ddfs.spool.copying import copy_file
from ddfs.spool.fetching import Order, Surroundings
from ddfs.spool.partial import PartialFile
from ddfs.spool.rest import Demand
from ddfs.spool.spool import Spool
from tests.mirrorlab.mirrorlab import MirrorLab


@dataclass
class MemoryLedger:
    """A catalogue that knows storages apart."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    written: dict[tuple[str, str], SpoolReference] = field(default_factory=dict)

    def manifest(self, content_id: str) -> Manifest:
        return self.manifests[content_id]

    def references(self) -> list[SpoolReference]:
        return list(self.written.values())

    def record_reference(self, reference: SpoolReference) -> None:
        self.written[reference.content_id, reference.primary] = reference

    def forget_reference(self, content_id: str, primary: str) -> None:
        self.written.pop((content_id, primary), None)

    def record_unpacked(self, content_id: str, size: int, sha256: str) -> None:
        raise NotImplementedError


@dataclass
class World:
    spool: Spool
    storages: dict[str, DirectoryStorage]
    ledger: MemoryLedger
    changes: list[str]

    def knows(self, manifest: Manifest, primary: str | None = None) -> Order:
        self.ledger.manifests[manifest.content_id] = manifest
        return replace(order_of(manifest), primary=primary)


@asynccontextmanager
async def world(
    directory: Path, ledger: MemoryLedger | None = None, small_quota: int | None = None
) -> AsyncIterator[World]:
    ledger, changes = ledger or MemoryLedger(), []
    storages = {}
    for name in ("slow", "fast"):
        (directory / name).mkdir(exist_ok=True)
        quota = None if name == "slow" or small_quota is None else lambda _: small_quota
        storages[name] = DirectoryStorage(name, directory / name, quota=quota)
        storages[name].prepare()
    try:
        async with Transport() as transport, trio.open_nursery() as nursery:
            around = Surroundings(
                storages["slow"], ledger, Inspector(), Heads(), transport, None,
                trio.CapacityLimiter(1),
            )  # fmt: skip
            spool = Spool(around, on_change=changes.append, others=[storages["fast"]])
            await nursery.start(spool.run)
            yield World(spool, storages, ledger, changes)
            nursery.cancel_scope.cancel()
    finally:
        for storage in storages.values():
            storage.close()
            for path in storage.path.iterdir():
                unlock(path)


async def fetched(host: World, order: Order) -> None:
    host.spool.demand(order, Demand.HAND)
    with trio.fail_after(90):
        await host.spool.wait_published(order)


async def test_copying_asks_no_mirror_again_and_prefers_the_first(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        order = host.knows(manifest_of(CONTENT, [url]), "fast")
        await fetched(host, order)
        holding = host.spool.holding(order.content_id)
        assert holding.primaries == ("fast",)
        assert host.spool.storage_of(order.content_id) is host.storages["fast"]
        requests = lab[url].requests
        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(host.spool.copy, order, "slow")
        assert lab[url].requests == requests
        holding = host.spool.holding(order.content_id)
        assert holding.primaries == ("slow", "fast")
        assert holding.published is not None
        assert holding.published.path == str(tmp_path / "slow" / order.published_name)
        files = [tmp_path / name / order.published_name for name in ("slow", "fast")]
        assert [file.read_bytes() for file in files] == [CONTENT, CONTENT]
        assert [file.stat().st_mode & 0o777 for file in files] == [0o444, 0o444]
        assert files[0].stat().st_ino != files[1].stat().st_ino
        assert {key: r.state for key, r in host.ledger.written.items()} == {
            (order.content_id, name): SpoolState.PUBLISHED for name in ("slow", "fast")
        }
        for storage in host.storages.values():
            assert os.listdir(storage.partial_dir) == ["lock"]


async def test_copies_are_there_after_a_restart_and_stand_in_for_each_other(
    tmp_path: Path,
) -> None:
    ledger = MemoryLedger()
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        async with world(tmp_path, ledger) as host:
            order = host.knows(manifest)
            await fetched(host, order)
            await host.spool.copy(order, "fast")
        async with world(tmp_path, ledger) as host:
            assert host.spool.holding(order.content_id).primaries == ("slow", "fast")
            for storage in ("slow", "fast"):
                file = tmp_path / storage / order.published_name
                unlock(file)
            (tmp_path / "slow" / order.published_name).unlink()
            found = await host.spool.confirm_published(order.content_id)
            assert found is not None
            assert found.path == str(tmp_path / "fast" / order.published_name)
            assert host.spool.holding(order.content_id).primaries == ("fast",)


async def test_one_copy_is_evicted_and_the_other_stays(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        order = host.knows(manifest_of(CONTENT, [lab.mirror(CONTENT)]))
        await fetched(host, order)
        await host.spool.copy(order, "fast")
        content_id = order.content_id
        uses = host.spool.uses(content_id)
        assert sorted(primary for _, primary, _ in host.spool.stored()) == ["fast", "slow"]
        assert not await host.spool.evict(content_id, "slow", uses - 1)
        host.spool._holding(content_id).evicted = evicted = trio.Event()
        assert host.spool._holding(content_id).obstacle is evicted
        host.spool._holding(content_id).evicted = None
        assert host.spool._holding(content_id).obstacle is None
        assert not await host.spool.evict(content_id, "nowhere", uses)
        assert await host.spool.evict(content_id, "slow", uses)
        assert host.spool.holding(content_id).primaries == ("fast",)
        assert os.listdir(tmp_path / "slow") == []
        assert await host.spool.evict(content_id, "fast", uses)
        assert host.spool.holding(content_id).state is SpoolState.ABSENT
        assert host.ledger.written == {}
        # Who wants it has it fetched again.
        await fetched(host, order)


async def test_purging_deletes_all_copies(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        order = host.knows(manifest_of(CONTENT, [lab.mirror(CONTENT)]))
        await fetched(host, order)
        await host.spool.copy(order, "fast")
        await host.spool.purge(order.content_id)
        assert [os.listdir(tmp_path / name) for name in ("slow", "fast")] == [[], []]
        assert host.ledger.written == {}


async def test_a_damaged_source_is_not_copied(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        order = host.knows(manifest_of(CONTENT, [lab.mirror(CONTENT)]))
        await fetched(host, order)
        file = tmp_path / "slow" / order.published_name
        unlock(file)
        file.chmod(0o600)
        with file.open("r+b") as damaged:
            damaged.seek(MiB)
            damaged.write(b"damage")
        with pytest.raises(errors.ChecksumError, match="is not what was published"):
            await host.spool.copy(order, "fast")
        assert os.listdir(tmp_path / "fast") == []
        assert os.listdir(host.storages["fast"].partial_dir) == ["lock"]


async def test_copying_where_it_cannot_be(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path, small_quota=MiB) as host:
        order = host.knows(manifest_of(CONTENT, [lab.mirror(CONTENT)]))
        with pytest.raises(errors.NotHereYetError, match="fetched first"):
            await host.spool.copy(order, "fast")
        await fetched(host, order)
        with pytest.raises(errors.InvalidValueError, match="the settings have slow, fast"):
            await host.spool.copy(order, "nowhere")
        with pytest.raises(errors.StorageFullError, match="quota"):
            await host.spool.copy(order, "fast")
        (tmp_path / "fast" / order.published_name).write_bytes(b"somebody else's")
        with pytest.raises(errors.NameTakenError, match="not touched"):
            await host.spool.copy(order, "fast")


def test_a_copy_keeps_its_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.write(b"a" * MiB)
        file.seek(64 * MiB)
        file.write(b"b" * MiB)
        file.truncate(128 * MiB)
    copy_file(source, target)
    assert target.stat().st_size == 128 * MiB
    assert target.stat().st_blocks * 512 <= 4 * MiB
    assert target.read_bytes() == source.read_bytes()
    empty = tmp_path / "empty"
    empty.touch()
    copy_file(empty, target)
    assert target.stat().st_size == 0


async def test_no_journal_of_before_vouches_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that is killed leaves holes where a fetch of before had bytes."""
    async with MirrorLab() as lab, world(tmp_path) as host:
        manifest, fast = manifest_of(CONTENT, [lab.mirror(CONTENT)]), host.storages["fast"]
        order, content_id = host.knows(manifest), manifest.content_id
        await fetched(host, order)
        partial = PartialFile.open(
            fast.partial_path(content_id), fast.journal_path(content_id), manifest
        )
        await partial.commit([PieceRecord(0, "", b"")])
        partial.close()
        journals: list[bool] = []

        def looking(source: Path, target: Path, **arguments: Any) -> bool:
            journals.append(fast.journal_path(content_id).exists())
            return copy_file(source, target, **arguments)

        monkeypatch.setattr(copying, "copy_file", looking)
        await host.spool.copy(order, "fast")
        assert journals == [False]


async def test_nothing_is_fetched_where_a_copy_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(source: Path, target: Path, **arguments: Any) -> bool:
        copied = copy_file(source, target, **arguments)
        began.set()
        assert go.wait(90)
        return copied

    monkeypatch.setattr(copying, "copy_file", slow)
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        order = host.knows(manifest_of(CONTENT, [url]), "fast")
        host.spool.demand(replace(order, primary="slow"), Demand.HAND)
        with trio.fail_after(90):
            published = Path((await host.spool.wait_published(order)).path)
            requests, read = lab[url].requests, list[bytes]()

            async def reader() -> None:
                read.append(await host.spool.read(order, ByteRange(3, 1000)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.spool.copy, order, "fast")
                await trio.to_thread.run_sync(began.wait, 20)
                unlock(published)
                published.unlink()
                assert await host.spool.confirm_published(order.content_id) is None
                nursery.start_soon(reader)
                await trio.testing.wait_all_tasks_blocked(0.1)
                assert not host.spool.is_fetching(order.content_id)
                go.set()
        assert read == [CONTENT[3:1000]]
        assert lab[url].requests == requests


async def test_what_is_evicted_is_purged_after_that(tmp_path: Path) -> None:
    is_deleting, may_delete = threading.Event(), threading.Event()
    async with MirrorLab() as lab, world(tmp_path) as host:
        order = host.knows(manifest_of(CONTENT, [lab.mirror(CONTENT)]))
        await fetched(host, order)
        await host.spool.copy(order, "fast")
        content_id, purge = order.content_id, host.storages["fast"].purge

        def purge_late(published: PublishedFile) -> None:
            is_deleting.set()
            assert may_delete.wait(90)
            purge(published)

        host.storages["fast"].purge = purge_late  # type: ignore[method-assign]
        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                uses = host.spool.uses(content_id)
                nursery.start_soon(host.spool.evict, content_id, "fast", uses)
                await trio.to_thread.run_sync(is_deleting.wait, 10)
                nursery.start_soon(host.spool.purge, content_id)
                await trio.testing.wait_all_tasks_blocked(0.05)
                # Nothing of the other one's is deleted before.
                assert os.listdir(tmp_path / "slow") == [order.published_name]
                may_delete.set()
        assert [os.listdir(tmp_path / name) for name in ("slow", "fast")] == [[], []]
        assert host.ledger.written == {}
        assert host.spool.holding(content_id).state is SpoolState.ABSENT


async def test_what_other_hosts_may_be_deleting_is_not_adopted_as_a_copy(tmp_path: Path) -> None:
    wanted: list[str] = []
    async with MirrorLab() as lab, world(tmp_path) as host:
        order = host.knows(manifest_of(CONTENT, [lab.mirror(CONTENT)]))
        await fetched(host, order)
        await host.spool.copy(order, "fast")
        content_id, leaving = order.content_id, host.spool.leaving
        assert leaving.withhold(content_id, "fast", None, wanted.append)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.spool.copy, order, "fast")
                await trio.testing.wait_all_tasks_blocked(0.1)
                assert wanted == [content_id]
                assert host.spool.holding(content_id).primaries == ("slow",)
                assert await leaving.evict(content_id, "fast", 0)
        assert host.spool.holding(content_id).primaries == ("slow", "fast")
        assert (tmp_path / "fast" / order.published_name).read_bytes() == CONTENT


async def test_a_bug_in_a_copy_ends_that_copy_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        order = host.knows(manifest_of(CONTENT, [lab.mirror(CONTENT)]))
        await fetched(host, order)

        def fail(_path: Path) -> None:
            raise ZeroDivisionError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(host.storages["fast"], "identify", fail)
            with pytest.raises(errors.StorageError, match="internal error: ZeroDivisionError"):
                await host.spool.copy(order, "fast")
        assert (await host.spool.copy(order, "fast")).size == len(CONTENT)


async def test_a_failure_is_written_down_where_it_was(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        content_id, slow = manifest.content_id, order_of(manifest)
        fast = replace(slow, primary="fast")

        def demand_elsewhere(_content_id: str) -> None:
            if host.spool.holding(content_id).error is not None:
                host.knows(manifest)
                host.spool.demand(fast, Demand.HAND)

        # Nothing is known of it, at first.
        host.spool._on_change = demand_elsewhere
        host.spool.demand(slow, Demand.HAND)
        with trio.fail_after(90):
            while not host.spool.published(content_id):
                await trio.sleep(0.01)
        assert {primary: r.state for (_, primary), r in host.ledger.written.items()} == {
            "slow": SpoolState.FAILED,
            "fast": SpoolState.PUBLISHED,
        }
