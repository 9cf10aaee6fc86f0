"""Two hosts on one directory: fetched into once, also when the one that fetches dies."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from test_spool_copying import MemoryLedger
from test_spool_spool import CONTENT, Heads, Inspector, manifest_of, order_of, unlock

from ddfs import errors
from ddfs.fetch.transport import Transport
from ddfs.model import Manifest, MiB, PublishedFile
from ddfs.primary.publish import look_at
from ddfs.primary.shared import SharedDirectoryStorage
from ddfs.spool.copying import copy_content
from ddfs.spool.fetching import Surroundings
from ddfs.spool.rest import Demand
from ddfs.spool.spool import Spool
from tests.mirrorlab.mirrorlab import MirrorLab

EXPIRY_SECONDS = 2.0


def storage_of(directory: Path, host: str) -> SharedDirectoryStorage:
    storage = SharedDirectoryStorage(
        "default", directory, host, expiry_seconds=EXPIRY_SECONDS, beat_seconds=0.2
    )
    storage.prepare()
    return storage


@asynccontextmanager
async def host_on(
    directory: Path, name: str, manifest: Manifest
) -> AsyncIterator[tuple[Spool, SharedDirectoryStorage]]:
    storage = storage_of(directory, name)
    ledger = MemoryLedger({manifest.content_id: manifest})
    try:
        async with Transport() as transport, trio.open_nursery() as nursery:
            around = Surroundings(
                storage, ledger, Inspector(), Heads(), transport, None, trio.CapacityLimiter(1)
            )
            spool = Spool(around, on_change=lambda _: None)
            await nursery.start(spool.run)
            yield spool, storage
            nursery.cancel_scope.cancel()
    finally:
        storage.close()


@pytest.fixture
def images(tmp_path: Path) -> AsyncIterator[Path]:
    directory = tmp_path / "images"
    directory.mkdir()
    yield directory
    for path in directory.iterdir():
        unlock(path)


async def test_two_hosts_that_want_it_at_once_fetch_it_once(images: Path) -> None:
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, rate=20 * MiB)
        manifest = manifest_of(CONTENT, [url])
        order = order_of(manifest)
        async with (
            host_on(images, "a", manifest) as (first, _),
            host_on(images, "b", manifest) as (second, _),
        ):
            with trio.fail_after(30):
                for spool in (first, second):
                    spool.demand(order, Demand.HAND)
                for spool in (first, second):
                    published = await spool.wait_published(order)
                    assert published.path == str(images / order.published_name)
        assert lab[url].bytes_sent <= len(CONTENT) + MiB
        assert (images / order.published_name).read_bytes() == CONTENT


async def test_a_host_that_died_in_its_fetch_is_replaced(images: Path) -> None:
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        order = order_of(manifest)
        dead = storage_of(images, "dead")
        assert dead.claim(order.content_id)
        # Its process is gone: it beats no more, and releases nothing.
        assert dead._leases is not None
        dead._leases._ending.set()
        dead.partial_path(order.content_id).write_bytes(CONTENT)
        async with host_on(images, "alive", manifest) as (spool, _):
            began = trio.current_time()
            spool.demand(order, Demand.HAND)
            with trio.fail_after(30):
                while spool.holding(order.content_id).waits_for != "dead":
                    await trio.sleep(0.05)
                await spool.wait_published(order)
            assert spool.holding(order.content_id).waits_for is None
            assert trio.current_time() - began >= EXPIRY_SECONDS
        # It was only asleep, and would publish now.
        with pytest.raises(errors.StorageError, match="another host has taken over"):
            dead.publish(dead.partial_path(order.content_id), "x@other.img")
        dead.close()
        assert os.listdir(images) == [order.published_name]


async def test_what_others_may_need_is_never_deleted(images: Path) -> None:
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        order = order_of(manifest)
        async with host_on(images, "a", manifest) as (spool, storage):
            spool.demand(order, Demand.HAND)
            with trio.fail_after(30):
                published = await spool.wait_published(order)
            with pytest.raises(errors.StorageError, match="other hosts share this storage"):
                storage.purge(published)
            with pytest.raises(errors.StorageError, match="other hosts share this storage"):
                await spool.purge(order.content_id)
            assert await spool.confirm_published(order.content_id) == published


async def test_what_is_copied_to_it_is_published(images: Path, tmp_path: Path) -> None:
    manifest = manifest_of(CONTENT, ["http://gone.example/x"])
    source = tmp_path / "x.img"
    source.write_bytes(CONTENT)
    file = look_at(source)
    assert file is not None
    other = storage_of(images, "other")
    assert other.claim(manifest.content_id)
    async with host_on(images, "a", manifest) as (spool, storage), trio.open_nursery() as nursery:
        copied: list[PublishedFile] = []

        async def copy() -> None:
            copied.append(await copy_content(order_of(manifest), file, storage, spool._with))

        with trio.fail_after(20):
            nursery.start_soon(copy)
            await trio.sleep(0.2)
            assert not os.listdir(images)
            other.disclaim(manifest.content_id)
            while not copied:
                await trio.sleep(0.05)
        assert Path(copied[0].path).read_bytes() == CONTENT
        # The next one need not wait for it.
        assert other.claim(manifest.content_id)
    other.close()


def test_what_is_unpacked_there_is_published(images: Path) -> None:
    storage = storage_of(images, "a")
    content_id = "unpacked:" + "ab" * 32
    assert storage.claim(content_id)
    unpacked = storage.unpacked_path(content_id)
    unpacked.write_bytes(CONTENT)
    published = storage.publish(unpacked, "x@ab.img")
    assert Path(published.path).read_bytes() == CONTENT
    storage.close()
