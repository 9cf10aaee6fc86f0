"""Damage in what was unpacked, mended from the packed file on real mirrors."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from ddfs import errors
from ddfs.image.unpack import unpack
from ddfs.model import KiB, Manifest, MiB, PublishedFile
from ddfs.spool.examine import Findings, examine
from ddfs.spool.partial import PartialFile
from ddfs.spool.repair import repair
from ddfs.spool.rest import Demand
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.test_spool_spool import World, world
from tests.spool.test_spool_unpacking import IMAGE, PACKED, Ledger, packed_manifest, with_unpacking


async def published(host: World, manifest: Manifest) -> PublishedFile:
    order = host.knows(manifest, head_is_verified=False)
    spool = with_unpacking(host)
    spool.demand(order, Demand.HAND)
    return await spool.wait_published(order)


def damage(file: PublishedFile, offsets: Sequence[int]) -> None:
    subprocess.run(["chattr", "-i", file.path], check=False, capture_output=True)
    os.chmod(file.path, 0o644)
    with open(file.path, "r+b") as opened:
        for offset in offsets:
            opened.seek(offset)
            opened.write(b"rotten")
    os.utime(file.path, ns=(file.mtime_ns, file.mtime_ns))


async def found_in(host: World, file: PublishedFile, content_id: str) -> Findings:
    known = host.ledger.manifests[content_id].published

    def look() -> Findings:
        return examine(Path(file.path), known, None, lambda _: None, from_disk=False)

    return await trio.to_thread.run_sync(look)


async def mend(host: World, file: PublishedFile, content_id: str) -> None:
    findings = await found_in(host, file, content_id)
    manifest = host.ledger.manifests[content_id]
    around = replace(host.spool._with, unpack=unpack)
    await repair(file, manifest, None, findings, [], around)


def left_of_it(host: World) -> list[str]:
    """Partial files, journals and what was unpacked."""
    return [path.name for path in host.storage.partial_dir.iterdir() if path.name != "lock"]


async def test_only_what_differs_is_written_into_the_file_that_is_open(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path, ledger=Ledger()) as host:
        url = lab.mirror(PACKED)
        manifest = packed_manifest(PACKED, [url])
        with trio.fail_after(90):
            file = await published(host, manifest)
            damage(file, [5, 4 * MiB + 100 * KiB])
            written: list[object] = []
            real = host.storage.mend

            def note(*asked: object) -> None:
                written.append(asked[2])
                real(*asked)  # type: ignore[arg-type]

            host.storage.mend = note  # type: ignore[method-assign,assignment]
            reader = os.open(file.path, os.O_RDONLY)
            await mend(host, file, manifest.content_id)
            assert os.pread(reader, 2 * len(IMAGE), 0) == IMAGE
            os.close(reader)
            [ranges] = written
            assert [(each.start, each.end) for each in ranges] == [  # type: ignore[attr-defined]
                (0, MiB), (4 * MiB, 5 * MiB),
            ]  # fmt: skip
            assert host.storage.is_intact(file)
            assert left_of_it(host) == []
            assert lab[url].bytes_sent == 2 * len(PACKED)
            assert (await found_in(host, file, manifest.content_id)).damaged == ()


@pytest.mark.parametrize("is_gone", [True, False])
async def test_a_source_that_is_gone_or_has_changed_changes_nothing(
    tmp_path: Path, is_gone: bool
) -> None:
    async with MirrorLab() as lab, world(tmp_path, ledger=Ledger()) as host:
        url = lab.mirror(PACKED)
        manifest = packed_manifest(PACKED, [url])
        with trio.fail_after(90):
            file = await published(host, manifest)
            damage(file, [7])
            rotten = Path(file.path).read_bytes()
            if is_gone:
                lab[url].fault = "404"
            else:
                lab[url].content = PACKED[:-1] + b"x"
            with pytest.raises(errors.MirrorsExhaustedError, match="nothing was changed") as caught:
                await mend(host, file, manifest.content_id)
        assert "\n" not in str(caught.value)
        assert Path(file.path).read_bytes() == rotten
        assert left_of_it(host) == []


async def test_what_a_fetch_of_the_same_has_is_left_to_it(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path, ledger=Ledger()) as host:
        manifest = packed_manifest(PACKED, [lab.mirror(PACKED)])
        content_id = manifest.content_id
        paths = host.storage.partial_path(content_id), host.storage.journal_path(content_id)
        with trio.fail_after(90):
            file = await published(host, manifest)
            damage(file, [7])
            while left_of_it(host):
                await trio.sleep(0.01)
            # It was deleted meanwhile, and somebody wants it again.
            theirs = PartialFile.open(*paths, manifest)
            try:
                host.storage.reserve(content_id, len(PACKED))
                with pytest.raises(errors.AlreadyRunningError):
                    await mend(host, file, content_id)
                assert sorted(left_of_it(host)) == sorted(path.name for path in paths)
                assert content_id in host.storage._room.contents()
            finally:
                theirs.close()


async def test_nothing_is_deleted_beside_a_repair(tmp_path: Path) -> None:
    """Its packed file has the name that a fetch of the same would give its own."""
    async with MirrorLab() as lab, world(tmp_path, ledger=Ledger()) as host:
        manifest = packed_manifest(PACKED, [lab.mirror(PACKED)])
        content_id = manifest.content_id
        with trio.fail_after(90):
            file = await published(host, manifest)
            with host.spool.repairing(content_id):
                assert not await host.spool.evict(content_id, "default", 1)
                uses = host.spool.uses(content_id)
                assert not host.spool.leaving.withhold(content_id, "default", uses, lambda _: None)
                with pytest.raises(errors.TemplateInUseError, match="being repaired"):
                    await host.spool.purge(content_id)
            assert host.storage.is_intact(file)
            await host.spool.purge(content_id)
            assert not Path(file.path).exists()
            with (
                pytest.raises(errors.TemplateInUseError, match="deleted"),
                host.spool.repairing(content_id),
            ):
                pass
