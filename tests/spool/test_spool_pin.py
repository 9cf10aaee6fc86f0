"""What nothing verifies: its first fetch says what it is, for ever."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
import trio

from ddfs import errors
from ddfs.catalogue.heads import HeadStore
from ddfs.model import (
    ByteRange,
    Digest,
    HashAlgorithm,
    KiB,
    Manifest,
    MiB,
    Mirror,
    Packing,
    PackingKind,
    PublishedFile,
    unverified_id,
)
from ddfs.spool.fetching import Order
from ddfs.spool.rest import Demand
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.test_spool_spool import MemoryLedger, World, unlock, world

CONTENT = bytes(range(256)) * (12 * KiB)
OTHER = CONTENT[::-1]


def unverified(url: str, etag: str = "lab") -> Manifest:
    name = unverified_id(url, len(CONTENT), f'"{etag}"')
    return Manifest(
        "x.img", len(CONTENT), (), None, (Mirror(url),), size_is_stated=False, unverified_id=name
    )


def sha256(content: bytes) -> Digest:
    return Digest(HashAlgorithm.SHA256, hashlib.sha256(content).hexdigest())


async def fetched(host: World, order: Order) -> PublishedFile:
    host.spool.demand(order, Demand.HAND)
    return await host.spool.wait_published(order)


async def test_the_first_fetch_binds_the_bytes(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        order = host.knows(unverified(url), head_is_verified=False)
        with trio.fail_after(90):
            assert await host.spool.read(order, ByteRange(5, 1000)) == CONTENT[5:1000]
            published = await fetched(host, order)
        assert host.ledger.manifests[order.content_id].digests == (sha256(CONTENT),)
        assert Path(published.path).read_bytes() == CONTENT


async def test_other_bytes_are_refused_after_that(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        async with world(tmp_path, ledger=ledger) as host:
            order = host.knows(unverified(url), head_is_verified=False)
            with trio.fail_after(90):
                published = Path((await fetched(host, order)).path)
        unlock(published)
        published.unlink()
        ledger.written.clear()
        # A restart; the server still says that nothing has changed.
        lab[url].content = OTHER
        async with world(tmp_path, ledger=ledger) as host:
            with trio.fail_after(90), pytest.raises(errors.ChecksumError, match="sha-256"):
                await fetched(host, order)
            assert not published.exists()


async def test_a_source_that_changed_before_its_first_fetch(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        order = host.knows(unverified(url, etag="before"), head_is_verified=False)
        with trio.fail_after(90), pytest.raises(errors.ChecksumError, match="has changed since"):
            await fetched(host, order)
        assert lab[url].bytes_sent == 0
        assert host.ledger.manifests[order.content_id].digests == ()


async def test_a_source_that_changes_midway_is_not_mixed(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT, rate=2 * MiB)
        order = host.knows(unverified(url), head_is_verified=False)
        host.spool.demand(order, Demand.HAND)
        with trio.fail_after(90):
            while lab[url].bytes_sent < 256 * KiB:
                await trio.sleep(0.01)
            lab[url].content, lab[url].etag = OTHER, "after"
            with pytest.raises(errors.SourceError, match="changed"):
                await fetched(host, order)
            # Registered again it is other content, and nothing of the first is in it.
            lab[url].rate = None
            again = host.knows(unverified(url, etag="after"), head_is_verified=False)
            published = await fetched(host, again)
        assert Path(published.path).read_bytes() == OTHER
        # The first came back: what was received midway does not count.
        lab[url].content, lab[url].etag = CONTENT, "lab"
        with trio.fail_after(90):
            published = await fetched(host, order)
        assert Path(published.path).read_bytes() == CONTENT


async def test_what_an_earlier_fetch_left_is_of_another_state_perhaps(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(OTHER, rate=2 * MiB)
        order = host.knows(unverified(url), head_is_verified=False)
        host.spool.demand(order, Demand.HAND)
        with trio.fail_after(90):
            # A piece of what the server shows for a moment, under the same validator, is
            # received and written down; then the fetch ends.
            while host.spool.holding(order.content_id).bytes_here < MiB:
                await trio.sleep(0.01)
            host.spool.cancel(order.content_id)
            while host.spool.is_fetching(order.content_id):
                await trio.sleep(0.01)
            lab[url].content, lab[url].rate = CONTENT, None
            published = await fetched(host, order)
        assert Path(published.path).read_bytes() == CONTENT


async def test_a_file_in_an_unverified_archive_is_stored(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.img", CONTENT)
        archive.writestr("b.img", OTHER)
    data = packed.getvalue()
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(data)
        content_id = unverified_id(url, len(data), '"lab"', "b.img")
        manifest = Manifest(
            "x.zip", len(data), (), None, (Mirror(url),), size_is_stated=False,
            packing=Packing(PackingKind.ZIP, member="b.img"), unverified_id=content_id,
        )  # fmt: skip
        host.storage.journal_path(content_id).write_bytes(b"")
        host.storage.partial_path(content_id).write_bytes(b"x")
        assert list(host.storage.leftovers()) == [content_id]
        host.storage.discard(content_id)
        heads = HeadStore(tmp_path)
        heads.put(content_id, OTHER[:100])
        assert heads.read(content_id, 0, 10) == OTHER[:10]
        order = host.knows(manifest, head_is_verified=False)
        unpacked = host.storage.unpacked_path(order.content_id)
        unpacked.write_bytes(OTHER)
        published = host.storage.publish(unpacked, order.published_name)
        assert Path(published.path).read_bytes() == OTHER
