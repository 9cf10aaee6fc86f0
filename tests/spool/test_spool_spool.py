"""The spool on a real directory, fetching from real mirrors that misbehave by name."""

import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from ddfs import errors
from ddfs.fetch.transport import Transport
from ddfs.model import (
    ByteRange,
    Digest,
    HashAlgorithm,
    ImageFormat,
    KiB,
    Manifest,
    MiB,
    Mirror,
    PieceMap,
    SpoolReference,
    SpoolState,
)
from ddfs.primary.directory import DirectoryStorage
from ddfs.spool.fetching import Order, Surroundings
from ddfs.spool.rest import Demand
from ddfs.spool.spool import Spool
from tests.mirrorlab.mirrorlab import MirrorLab

CONTENT = random.Random(7).randbytes(6 * MiB + 12345)
PIECE = 256 * KiB


def manifest_of(
    content: bytes, urls: list[str], *, with_pieces: bool = True, piece_length: int = PIECE
) -> Manifest:
    starts = range(0, len(content), piece_length)
    pieces = PieceMap(
        HashAlgorithm.SHA256,
        piece_length,
        b"".join(hashlib.sha256(content[i : i + piece_length]).digest() for i in starts),
    )
    return Manifest(
        name="x.img",
        size=len(content),
        digests=(Digest(HashAlgorithm.SHA256, hashlib.sha256(content).hexdigest()),),
        pieces=pieces if with_pieces else None,
        mirrors=tuple(Mirror(url, priority=n + 1) for n, url in enumerate(urls)),
    )


def order_of(manifest: Manifest, *, head_is_verified: bool = True) -> Order:
    assert manifest.size is not None
    return Order(
        content_id=manifest.content_id,
        size=manifest.size,
        published_name=f"x@{manifest.content_id[8:20]}.img",
        format=ImageFormat.RAW,
        head_is_verified=head_is_verified,
        is_readable_early=manifest.is_readable_early,
    )


@dataclass
class MemoryLedger:
    """A catalogue that forgets everything at the end."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    written: dict[str, SpoolReference] = field(default_factory=dict)

    def manifest(self, content_id: str) -> Manifest:
        return self.manifests[content_id]

    def pin(self, content_id: str, digest: Digest) -> None:
        known = self.manifests[content_id]
        self.manifests[content_id] = replace(known, digests=(digest,))

    def references(self) -> list[SpoolReference]:
        return list(self.written.values())

    def record_reference(self, reference: SpoolReference) -> None:
        self.written[reference.content_id] = reference

    def forget_reference(self, content_id: str, primary: str) -> None:
        self.written.pop(content_id, None)


@dataclass
class Heads:
    """Heads in memory."""

    stored: dict[str, bytes] = field(default_factory=dict)

    def put(self, content_id: str, data: bytes) -> None:
        self.stored[content_id] = data

    def read(self, content_id: str, offset: int, length: int) -> bytes:
        return self.stored.get(content_id, b"")[offset : offset + length]


@dataclass
class Inspector:
    """Lets everything pass, unless told to refuse."""

    refusal: str | None = None
    heads_seen: list[bytes] = field(default_factory=list)

    def inspect_head(self, data: bytes, size: int, claimed: ImageFormat) -> None:
        self.heads_seen.append(data)
        if self.refusal:
            raise errors.ImageError(self.refusal)

    def inspect_file(self, path: Path, claimed: ImageFormat) -> None:
        self.inspect_head(path.read_bytes()[:10], path.stat().st_size, claimed)


@dataclass
class World:
    """One host's spool, and what is around it."""

    spool: Spool
    storage: DirectoryStorage
    ledger: MemoryLedger
    heads: Heads
    inspector: Inspector
    changes: list[str]

    def knows(self, manifest: Manifest, *, head_is_verified: bool = True) -> Order:
        self.ledger.manifests[manifest.content_id] = manifest
        return order_of(manifest, head_is_verified=head_is_verified)


@asynccontextmanager
async def world(
    directory: Path, *, ledger: MemoryLedger | None = None, heads: Heads | None = None
) -> AsyncIterator[World]:
    images = directory / "images"
    images.mkdir(exist_ok=True)
    storage = DirectoryStorage("default", images)
    storage.prepare()
    ledger, heads, inspector = ledger or MemoryLedger(), heads or Heads(), Inspector()
    changes: list[str] = []
    try:
        async with Transport() as transport, trio.open_nursery() as nursery:
            around = Surroundings(
                storage, ledger, inspector, heads, transport, None, trio.CapacityLimiter(1)
            )
            spool = Spool(around, on_change=changes.append)
            await nursery.start(spool.run)
            yield World(spool, storage, ledger, heads, inspector, changes)
            nursery.cancel_scope.cancel()
    finally:
        storage.close()
        for path in images.iterdir():
            if path.is_file():
                unlock(path)


def unlock(path: Path) -> None:
    """Published files are immutable; pytest wants to delete them."""
    os.system(f"chattr -i '{path}' 2>/dev/null")


async def test_sixteen_readers_cost_one_fetch(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        content = random.Random(8).randbytes(24 * MiB)
        urls = [lab.mirror(content, rate=30 * MiB), lab.mirror(content, rate=10 * MiB)]
        order = host.knows(manifest_of(content, urls, piece_length=MiB))
        right = []

        async def read_all(seed: int) -> None:
            offsets = list(range(0, len(content), 200_000))
            random.Random(seed).shuffle(offsets)
            for offset in offsets:
                end = min(offset + 200_000, len(content))
                data = await host.spool.read(order, ByteRange(offset, end))
                assert data == content[offset:end]
            right.append(seed)

        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                for seed in range(16):
                    nursery.start_soon(read_all, seed)
            published = await host.spool.wait_published(order)
        assert len(right) == 16
        assert Path(published.path).read_bytes() == content
        assert sum(lab[url].bytes_sent for url in urls) < 2 * len(content)
        assert host.ledger.written[order.content_id].state is SpoolState.PUBLISHED
        assert host.spool.holding(order.content_id).state is SpoolState.PUBLISHED
        # A second demand has nothing to do.
        host.spool.demand(order, Demand.HAND)
        assert not host.spool.is_fetching(order.content_id)


async def test_without_piece_hashes_readers_wait_for_the_whole(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT, rate=30 * MiB)
        order = host.knows(manifest_of(CONTENT, [url], with_pieces=False), head_is_verified=False)
        with trio.fail_after(90):
            data = await host.spool.read(order, ByteRange(5, 1000))
        assert data == CONTENT[5:1000]
        assert host.spool.published(order.content_id) is not None
        assert host.heads.stored[order.content_id] == CONTENT[: 64 * KiB]


async def test_a_lying_mirror_is_named_and_its_bytes_reach_nobody(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        liar = lab.mirror(CONTENT, fault="corrupt_all", rate=20 * MiB)
        honest = lab.mirror(CONTENT, rate=20 * MiB)
        order = host.knows(manifest_of(CONTENT, [liar, honest]))
        with trio.fail_after(90):
            for offset in range(0, len(CONTENT), MiB):
                end = min(offset + MiB, len(CONTENT))
                read = await host.spool.read(order, ByteRange(offset, end))
                assert read == CONTENT[offset:end]
            await host.spool.wait_published(order)
        mirrors = {mirror.url: mirror for mirror in host.spool.holding(order.content_id).mirrors}
        assert mirrors[liar].rejected_pieces > 0
        assert mirrors[liar].last_error
        assert mirrors[honest].rejected_pieces == 0


async def test_a_failure_rests_and_a_person_cuts_it_short(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        gone = lab.mirror(CONTENT, fault="404")
        order = host.knows(manifest_of(CONTENT, [gone]))
        with trio.fail_after(90):
            with pytest.raises(errors.MirrorsExhaustedError, match="404"):
                await host.spool.read(order, ByteRange(0, 10))
            asked = lab[gone].requests
            for _ in range(50):
                with pytest.raises(errors.FetchRestingError, match="tried again in"):
                    await host.spool.read(order, ByteRange(0, 10))
        assert lab[gone].requests == asked, "a read during the rest asks nobody"
        holding = host.spool.holding(order.content_id)
        assert holding.state is SpoolState.FAILED
        assert holding.error is not None
        assert "404" in holding.error
        assert holding.retry_in is not None
        good = lab.mirror(CONTENT)
        host.knows(manifest_of(CONTENT, [gone, good]))
        host.spool.demand(order, Demand.HAND)
        with trio.fail_after(90):
            await host.spool.wait_published(order)


async def test_cancelling_gives_readers_an_error_and_keeps_what_is_here(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        # A piece takes a second: the last one is not here when the fetch is cancelled.
        url = lab.mirror(CONTENT, rate=PIECE)
        order = host.knows(manifest_of(CONTENT, [url]))
        host.spool.demand(order)
        with trio.fail_after(90):
            await host.spool.read(order, ByteRange(0, PIECE))
            async with trio.open_nursery() as nursery:

                async def blocked() -> None:
                    with pytest.raises(errors.CancelledFetchError):
                        await host.spool.read(order, ByteRange(len(CONTENT) - 9, len(CONTENT)))

                lab[url].rate = KiB
                nursery.start_soon(blocked)
                await trio.sleep(0.2)
                assert host.spool.cancel(order.content_id)
            while host.ledger.written[order.content_id].state is not SpoolState.ABSENT:
                await trio.sleep(0.01)
        assert host.spool.holding(order.content_id).state is SpoolState.ABSENT
        assert not host.spool.cancel(order.content_id)
        sent = lab[url].bytes_sent
        assert host.spool.holding(order.content_id).bytes_here >= PIECE
        fast = lab.mirror(CONTENT)
        host.knows(manifest_of(CONTENT, [fast]))
        host.spool.demand(order, Demand.HAND)
        with trio.fail_after(90):
            await host.spool.wait_published(order)
        assert lab[fast].bytes_sent <= len(CONTENT) - PIECE
        assert sent > 0


async def test_what_is_in_primary_storage_already_is_adopted(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        order = host.knows(manifest_of(CONTENT, [url]))
        (host.storage.path / order.published_name).write_bytes(CONTENT)
        host.spool.demand(order)
        with trio.fail_after(90):
            published = await host.spool.wait_published(order)
        assert lab[url].requests == 0
        assert Path(published.path).stat().st_mode & 0o777 == 0o444


async def test_another_file_of_that_name_is_refused_before_a_byte(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        order = host.knows(manifest_of(CONTENT, [url]))
        other = host.storage.path / order.published_name
        other.write_bytes(b"somebody else's")
        with trio.fail_after(90), pytest.raises(errors.NameTakenError, match="not touched"):
            await host.spool.read(order, ByteRange(0, 10))
        assert other.read_bytes() == b"somebody else's"
        assert lab[url].requests == 0


async def test_nobody_reads_before_the_verified_head_has_passed(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT, rate=20 * MiB)
        order = host.knows(manifest_of(CONTENT, [url]), head_is_verified=False)
        host.heads.put(order.content_id, b"what a mirror claimed")
        host.inspector.refusal = "the image is refused: it names a backing file"
        with trio.fail_after(90), pytest.raises(errors.ImageError, match="backing file"):
            await host.spool.read(order, ByteRange(MiB, MiB + 10))
        assert host.inspector.heads_seen[0] == CONTENT[: 64 * KiB]
        assert list(host.storage.path.glob("x@*")) == []
        host.inspector.refusal = None
        host.spool.demand(order, Demand.HAND)
        with trio.fail_after(90):
            assert await host.spool.read(order, ByteRange(MiB, MiB + 10)) == CONTENT[MiB:][:10]
            await host.spool.wait_published(order)
        assert host.heads.stored[order.content_id] == CONTENT[: 64 * KiB]


async def test_a_crash_between_the_name_and_the_row_is_mended(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        async with world(tmp_path, ledger=ledger) as host:
            order = host.knows(manifest_of(CONTENT, [url]))
            # The storage has done its part; the process dies before the row is written.
            partial = host.storage.partial_path(order.content_id)
            partial.write_bytes(CONTENT)
            host.storage.publish(partial, order.published_name)
            ledger.record_reference(
                SpoolReference(order.content_id, "default", SpoolState.FETCHING, 3, 0.0)
            )
        async with world(tmp_path, ledger=ledger) as host:
            published = host.spool.published(order.content_id)
            assert published is not None
            assert Path(published.path).read_bytes() == CONTENT
            assert ledger.written[order.content_id].state is SpoolState.PUBLISHED
            assert lab[url].requests == 0


async def test_a_published_file_that_was_deleted_is_fetched_again(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        async with world(tmp_path, ledger=ledger) as host:
            order = host.knows(manifest_of(CONTENT, [url]))
            host.spool.demand(order)
            with trio.fail_after(90):
                path = Path((await host.spool.wait_published(order)).path)
            unlock(path)
            path.unlink()
            assert await host.spool.confirm_published(order.content_id) is None
            assert host.spool.holding(order.content_id).state is SpoolState.ABSENT
            host.spool.demand(order)
            with trio.fail_after(90):
                await host.spool.wait_published(order)
        unlock(path)
        path.unlink()
        async with world(tmp_path, ledger=ledger) as host:
            assert host.spool.published(order.content_id) is None


async def test_no_room_is_said_before_the_first_byte(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        huge = replace(manifest_of(CONTENT, [url], with_pieces=False), size=2**50)
        order = host.knows(huge)
        with trio.fail_after(90), pytest.raises(errors.StorageFullError, match="free some room"):
            await host.spool.read(order, ByteRange(0, 10))
        assert lab[url].requests == 0


async def test_ending_the_daemon_ends_its_fetches_and_the_next_goes_on(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, rate=4 * MiB)
        async with world(tmp_path, ledger=ledger) as host:
            order = host.knows(manifest_of(CONTENT, [url]))
            with trio.fail_after(90):
                await host.spool.read(order, ByteRange(0, 2 * MiB))
        sent = lab[url].bytes_sent
        async with world(tmp_path, ledger=ledger) as host:
            assert host.spool.was_interrupted(order.content_id)
            assert host.spool.holding(order.content_id).bytes_here >= 2 * MiB
            host.spool.demand(order)
            with trio.fail_after(90):
                await host.spool.wait_published(order)
        # What was on its way when the daemon ended may come twice: a connection's buffers.
        assert lab[url].bytes_sent - sent <= len(CONTENT) - MiB


async def test_an_image_under_another_name_is_copied_and_left_alone(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        order = host.knows(manifest_of(CONTENT, [url]))
        theirs = host.storage.path / "put here by hand.img"
        theirs.write_bytes(CONTENT)
        (host.storage.path / "another.img").write_bytes(bytes(len(CONTENT)))
        host.spool.demand(order)
        with trio.fail_after(90):
            published = await host.spool.wait_published(order)
        assert lab[url].bytes_sent == 0
        assert Path(published.path).read_bytes() == CONTENT
        assert theirs.stat().st_mode & 0o777 == 0o644
        theirs.write_bytes(b"it is still theirs")
        assert Path(published.path).read_bytes() == CONTENT


async def test_what_was_removed_meanwhile_is_not_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: object
) -> None:
    class Emptied(MemoryLedger):
        def manifest(self, content_id: str) -> Manifest:
            asked.append(content_id)
            raise errors.UnknownTemplateError("no template has it")

    asked: list[str] = []
    async with world(tmp_path, ledger=Emptied()) as host:
        order = order_of(manifest_of(CONTENT, ["http://gone.example/x"]))
        host.spool.demand(order)
        with pytest.raises(errors.UnknownTemplateError):
            await host.spool.wait_published(order)
        await trio.sleep(3600)
    assert asked == [order.content_id]
    assert "Traceback" not in caplog.text
