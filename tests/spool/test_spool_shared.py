"""Two hosts on one directory: fetched into once, also when the one that fetches dies."""

import gzip
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import trio
from test_spool_copying import MemoryLedger
from test_spool_spool import CONTENT, Heads, Inspector, manifest_of, order_of, unlock

from ddfs import errors
from ddfs.fetch.transport import Transport
from ddfs.image.unpack import unpack
from ddfs.model import (
    Digest,
    Manifest,
    MiB,
    Packing,
    PackingKind,
    PublishedFile,
    unverified_id,
)
from ddfs.primary.publish import look_at
from ddfs.primary.shared import SharedDirectoryStorage
from ddfs.spool.copying import copy_content
from ddfs.spool.examine import Findings
from ddfs.spool.fetching import Surroundings
from ddfs.spool.repair import repair
from ddfs.spool.rest import Demand
from ddfs.spool.spool import Spool
from tests.mirrorlab.mirrorlab import MirrorLab

EXPIRY_SECONDS = 2.0
# Of every mirror.
ETAG = '"lab"'


class Ledger(MemoryLedger):
    """One that learns what contents are."""

    def record_unpacked(self, content_id: str, size: int, sha256: str) -> None:
        known = self.manifests[content_id]
        assert known.packing is not None
        proved = replace(known.packing, size=size, sha256=sha256)
        self.manifests[content_id] = replace(known, packing=proved)

    def pin(self, content_id: str, digest: Digest) -> None:
        self.manifests[content_id] = replace(self.manifests[content_id], digests=(digest,))


def packed(url: str) -> tuple[bytes, Manifest]:
    """What a mirror at *url* has, and what is known of it."""
    data = gzip.compress(CONTENT, 1)
    return data, replace(manifest_of(data, [url]), packing=Packing(PackingKind.GZIP))


def unverified(url: str) -> tuple[bytes, Manifest]:
    """The same of what nothing verifies."""
    name = unverified_id(url, len(CONTENT), ETAG)
    manifest = manifest_of(CONTENT, [url], with_pieces=False)
    return CONTENT, replace(manifest, digests=(), unverified_id=name)


def storage_of(directory: Path, host: str, expiry_seconds: float = 30.0) -> SharedDirectoryStorage:
    storage = SharedDirectoryStorage(
        "default", directory, host, expiry_seconds=expiry_seconds, beat_seconds=0.2
    )
    storage.prepare()
    return storage


@asynccontextmanager
async def host_on(
    directory: Path, name: str, manifest: Manifest, expiry_seconds: float = 30.0
) -> AsyncIterator[tuple[Spool, SharedDirectoryStorage]]:
    storage = storage_of(directory, name, expiry_seconds)
    ledger = Ledger({manifest.content_id: manifest})
    try:
        async with Transport() as transport, trio.open_nursery() as nursery:
            around = Surroundings(
                storage, ledger, Inspector(), Heads(), transport, None, trio.CapacityLimiter(1),
                unpack=unpack,
            )  # fmt: skip
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
            with trio.fail_after(90):
                for spool in (first, second):
                    spool.demand(order, Demand.HAND)
                for spool in (first, second):
                    published = await spool.wait_published(order)
                    assert published.path == str(images / order.published_name)
        assert lab[url].bytes_sent < 2 * len(CONTENT)
        assert (images / order.published_name).read_bytes() == CONTENT


async def test_a_host_that_died_in_its_fetch_is_replaced(images: Path) -> None:
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        order = order_of(manifest)
        dead = storage_of(images, "dead", EXPIRY_SECONDS)
        assert dead.claim(order.content_id)
        # Its process is gone: it beats no more, and releases nothing.
        assert dead._leases is not None
        dead._leases._ending.set()
        dead.partial_path(order.content_id).write_bytes(CONTENT)
        async with host_on(images, "alive", manifest, EXPIRY_SECONDS) as (spool, _):
            began = trio.current_time()
            spool.demand(order, Demand.HAND)
            with trio.fail_after(90):
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


@pytest.mark.parametrize("is_said", [True, False])
@pytest.mark.parametrize("make", [packed, unverified])
async def test_what_has_no_hash_before_it_is_fetched_is_published_once(
    images: Path, make: Callable[[str], tuple[bytes, Manifest]], is_said: bool
) -> None:
    async with MirrorLab() as lab:
        url = lab.mirror(b"")
        data, manifest = make(url)
        lab[url].content = data
        order = order_of(manifest)
        async with (
            host_on(images, "a", manifest) as (first, _),
            host_on(images, "b", manifest) as (second, storage),
        ):
            with trio.fail_after(90):
                first.demand(order, Demand.HAND)
                published = await first.wait_published(order)
                sent = lab[url].bytes_sent
                if not is_said:
                    # By a ddfs that did not say so yet.
                    for path in (storage.partial_dir.parent / "contents").iterdir():
                        path.unlink()
                second.demand(order, Demand.HAND)
                assert await second.wait_published(order) == published
            assert lab[url].bytes_sent == (sent if is_said else 2 * sent)
            [known] = second._with.ledger.manifest(order.content_id).published.digests
            assert known.hexdigest == hashlib.sha256(CONTENT).hexdigest()
        assert (images / order.published_name).read_bytes() == CONTENT


async def test_other_bytes_under_the_name_of_what_has_no_hash_are_not_used(images: Path) -> None:
    async with MirrorLab() as lab:
        url = lab.mirror(b"")
        lab[url].content, manifest = packed(url)
        order = order_of(manifest)
        (images / order.published_name).write_bytes(b"x" * len(CONTENT))
        async with host_on(images, "a", manifest) as (spool, _):
            spool.demand(order, Demand.HAND)
            with trio.fail_after(90), pytest.raises(errors.NameTakenError):
                await spool.wait_published(order)


async def test_what_others_may_need_is_never_deleted(images: Path) -> None:
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        order = order_of(manifest)
        async with host_on(images, "a", manifest) as (spool, storage):
            spool.demand(order, Demand.HAND)
            with trio.fail_after(90):
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

        with trio.fail_after(90):
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


async def test_one_host_mends_a_file_and_it_is_the_same_to_all_meanwhile(images: Path) -> None:
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        order = order_of(manifest)
        async with (
            host_on(images, "a", manifest) as (first, storage),
            host_on(images, "b", manifest) as (second, other),
        ):
            with trio.fail_after(30):
                for spool in (first, second):
                    spool.demand(order, Demand.HAND)
                    published = await spool.wait_published(order)
            unlock(Path(published.path))
            Path(published.path).write_bytes(b"rotten" + CONTENT[6:])
            # As the first host leaves it while it writes, or when it dies in that.
            mark = storage.partial_dir / f"{order.published_name}.mending"
            mark.write_text(json.dumps(asdict(published)))
            os.utime(published.path, ns=(1, 1))
            assert await second.confirm_published(order.content_id) == published
            os.utime(published.path, ns=(1, published.mtime_ns))
            mark.unlink()

            damaged = Findings(manifest.grid, (0,), can_tell=True)
            asked = published, manifest, manifest.pieces, damaged, []
            with trio.fail_after(30):
                assert other.claim(order.content_id)
                with pytest.raises(errors.AlreadyRunningError, match="another host is at it"):
                    await repair(*asked, first._with)
                other.disclaim(order.content_id)
                await repair(*asked, first._with)
            assert other.claim(order.content_id)
        assert Path(published.path).read_bytes() == CONTENT


def test_what_a_killed_daemon_was_writing_is_swept(images: Path) -> None:
    storage = storage_of(images, "a")
    uses = storage.partial_dir.parent / "uses"
    storage.close()
    for host in ("a", "b"):
        (uses / f"0123.intent.{host}.new").touch()
    storage_of(images, "a").close()
    assert [path.name for path in uses.iterdir()] == ["0123.intent.b.new"]
