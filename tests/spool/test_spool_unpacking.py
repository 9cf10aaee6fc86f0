"""Packed images through the spool: fetched packed, published unpacked, bounded, resumable."""

import gzip
import hashlib
import lzma
import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from ddfs import errors
from ddfs.image.unpack import unpack
from ddfs.model import (
    Digest,
    HashAlgorithm,
    Manifest,
    MiB,
    Packing,
    PackingKind,
    SpoolReference,
    SpoolState,
)
from ddfs.spool.spool import Spool
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.test_spool_spool import MemoryLedger, World, manifest_of, world

IMAGE = random.Random(3).randbytes(3 * MiB) + bytes(5 * MiB) + b"end"
PACKED = gzip.compress(IMAGE, 1)


@dataclass
class Ledger(MemoryLedger):
    """One that knows what came out."""

    came_out: dict[str, tuple[int, str]] = field(default_factory=dict)

    def record_unpacked(self, content_id: str, size: int, sha256: str) -> None:
        self.came_out[content_id] = size, sha256
        known = self.manifests[content_id]
        assert known.packing is not None
        proved = replace(known.packing, size=size, sha256=sha256)
        self.manifests[content_id] = replace(known, packing=proved)


def with_unpacking(host: World) -> Spool:
    host.spool._with = replace(host.spool._with, unpack=unpack)
    return host.spool


def packed_manifest(data: bytes, urls: list[str], **packing: object) -> Manifest:
    manifest = manifest_of(data, urls)
    return replace(manifest, packing=Packing(**{"kind": PackingKind.GZIP, **packing}))


async def fetched(host: World, manifest: Manifest) -> Path:
    order = host.knows(manifest, head_is_verified=False)
    spool = with_unpacking(host)
    spool.demand(order)
    with trio.fail_after(90):
        return Path((await spool.wait_published(order)).path)


async def test_what_was_fetched_packed_is_published_unpacked(tmp_path: Path) -> None:
    ledger = Ledger()
    async with MirrorLab() as lab, world(tmp_path, ledger=ledger) as host:
        urls = [lab.mirror(PACKED), lab.mirror(PACKED)]
        manifest = packed_manifest(PACKED, urls)
        assert manifest.content_id not in (manifest.download_id, None)
        path = await fetched(host, manifest)
        assert path.read_bytes() == IMAGE
        assert path.stat().st_blocks * 512 < 4 * MiB
        assert path.stat().st_mode & 0o777 == 0o444
        came_out = len(IMAGE), hashlib.sha256(IMAGE).hexdigest()
        assert ledger.came_out[manifest.content_id] == came_out
        assert host.heads.stored[manifest.content_id] == IMAGE[: 64 * 1024]
        with trio.fail_after(90):
            while [p.name for p in host.storage.partial_dir.iterdir()] != ["lock"]:
                await trio.sleep(0.01)


async def test_a_lost_row_costs_a_hash_and_no_fetch(tmp_path: Path) -> None:
    """What came out was written down: the file is known by its own hash."""
    ledger = Ledger()
    async with MirrorLab() as lab:
        url = lab.mirror(PACKED)
        async with world(tmp_path, ledger=ledger) as host:
            manifest = packed_manifest(PACKED, [url])
            path = await fetched(host, manifest)
        ledger.written.clear()
        sent = lab[url].bytes_sent
        async with world(tmp_path, ledger=ledger) as host:
            order = host.knows(ledger.manifests[manifest.content_id])
            with_unpacking(host).demand(order)
            with trio.fail_after(90):
                assert (await host.spool.wait_published(order)).path == str(path)
            assert lab[url].bytes_sent == sent


async def test_a_crash_after_the_name_is_mended(tmp_path: Path) -> None:
    ledger = Ledger()
    manifest = packed_manifest(PACKED, ["http://gone.example/x"])
    async with world(tmp_path, ledger=ledger) as host:
        order = host.knows(manifest)
        host.storage.partial_path(order.content_id).write_bytes(PACKED)
        unpacked = host.storage.unpacked_path(order.content_id)
        unpacked.write_bytes(IMAGE)
        host.storage.publish(unpacked, order.published_name)
        ledger.record_reference(
            SpoolReference(order.content_id, "default", SpoolState.FETCHING, 3, 0.0)
        )
    async with world(tmp_path, ledger=ledger) as host:
        published = host.spool.published(order.content_id)
        assert published is not None
        assert Path(published.path).read_bytes() == IMAGE


async def test_a_crash_while_unpacking_costs_no_byte_of_the_network(tmp_path: Path) -> None:
    ledger = Ledger()

    def dies(*_: object, **__: object) -> None:
        raise errors.StorageError("the power went")

    async with MirrorLab() as lab:
        url = lab.mirror(PACKED)
        manifest = packed_manifest(PACKED, [url])
        async with world(tmp_path, ledger=ledger) as host:
            order = host.knows(manifest)
            host.spool._with = replace(host.spool._with, unpack=dies)
            host.spool.demand(order)
            with trio.fail_after(90), pytest.raises(errors.StorageError):
                await host.spool.wait_published(order)
            # As a kill leaves it: half of it, of another try.
            host.storage.unpacked_path(order.content_id).write_bytes(b"x" * 2 * len(IMAGE))
        sent = lab[url].bytes_sent
        async with world(tmp_path, ledger=ledger) as host:
            assert (await fetched(host, manifest)).read_bytes() == IMAGE
            assert lab[url].bytes_sent == sent


async def test_what_comes_out_wrong_is_an_error_and_nothing_is_published(tmp_path: Path) -> None:
    wrong = Digest(HashAlgorithm.SHA256, "0" * 64)
    bomb = lzma.compress(bytes(60 * MiB))
    cases = [
        (PACKED, {"checksum": wrong}, errors.ChecksumError),
        (PACKED, {"size": 1000}, errors.ImageError),
        (PACKED[:-9], {}, errors.ImageError),
        (PACKED + b"more", {}, errors.ImageError),
        (bomb, {"kind": PackingKind.XZ}, errors.ImageError),
    ]
    async with MirrorLab() as lab, world(tmp_path, ledger=Ledger()) as host:
        for data, packing, expected in cases:
            manifest = packed_manifest(data, [lab.mirror(data)], **packing)
            with pytest.raises(expected):
                await fetched(host, manifest)
            assert not list(host.storage.partial_dir.glob("*.unpacked.*"))
        assert not [path for path in host.storage.path.iterdir() if path.is_file()]


async def test_room_is_asked_for_what_comes_out(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path, ledger=Ledger()) as host:
        free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
        url = lab.mirror(PACKED)
        with pytest.raises(errors.StorageFullError):
            await fetched(host, packed_manifest(PACKED, [url], size=2 * free))
        assert lab[url].requests == 0


async def test_a_cancelled_unpacking_ends_and_can_be_asked_for_again(tmp_path: Path) -> None:
    data = gzip.compress(bytes(64 * MiB), 1) * 12
    async with MirrorLab() as lab, world(tmp_path, ledger=Ledger()) as host:
        manifest = packed_manifest(data, [lab.mirror(data)])
        order = host.knows(manifest)
        spool = with_unpacking(host)
        spool.demand(order)
        target = host.storage.unpacked_path(order.content_id)
        with trio.fail_after(90):
            while not target.exists():
                await trio.sleep(0.01)
            assert spool.cancel(order.content_id)
            with pytest.raises(errors.CancelledFetchError):
                await spool.wait_published(order)
        assert not target.exists()
