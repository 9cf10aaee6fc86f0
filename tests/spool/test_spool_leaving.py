"""How a file leaves, and who keeps it meanwhile."""

import os
from pathlib import Path

import pytest
import trio

from ddfs import errors
from ddfs.model import ByteRange, MiB
from ddfs.spool import fetching, reading
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.test_spool_spool import CONTENT, manifest_of, world


async def test_purging_deletes_the_file_and_what_is_partial(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT, rate=8 * MiB)
        order = host.knows(manifest_of(CONTENT, [url]))
        host.spool.demand(order)
        with pytest.raises(errors.TemplateInUseError, match="being fetched"):
            await host.spool.purge(order.content_id)
        with trio.fail_after(90):
            path = Path((await host.spool.wait_published(order)).path)
            await host.spool.purge(order.content_id)
        assert not path.exists()
        assert [p.name for p in host.storage.partial_dir.iterdir() if "lock" not in p.name] == []


async def test_nobody_starts_a_fetch_into_what_is_being_purged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        order = host.knows(manifest_of(CONTENT, [url]))
        host.spool.demand(order)
        with trio.fail_after(90):
            await host.spool.wait_published(order)
            asked = lab[url].requests
            # The moment in which the file is gone and the rest is not, by its own notice.
            monkeypatch.setattr(host.spool, "_on_change", lambda _: host.spool.demand(order))
            await host.spool.purge(order.content_id)
            # A fetch that had begun would be nobody's by now, and ask within milliseconds.
            await trio.sleep(0.5)
        assert not host.spool.is_fetching(order.content_id)
        assert lab[url].requests == asked


async def test_a_reader_whose_disk_hangs_keeps_the_file_that_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_READERS_LEAVE_SECONDS", 0.05)
    hangs, goes_on, read_file = trio.Event(), trio.Event(), reading.read_file

    async def read_late(fd: int, offset: int, length: int) -> bytes:
        hangs.set()
        await goes_on.wait()
        return await read_file(fd, offset, length)

    async with MirrorLab() as lab, world(tmp_path) as host:
        order = host.knows(manifest_of(CONTENT, [lab.mirror(CONTENT, rate=4 * MiB)]))
        content_id, read = order.content_id, list[bytes]()

        async def look() -> None:
            read.append(await host.spool.read(order, ByteRange(0, 1000)))

        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                # The head was looked at before, and is not read by this.
                monkeypatch.setattr(reading, "read_file", read_late)
                nursery.start_soon(look)
                await hangs.wait()
                fetch = host.spool._holding(content_id).fetch
                assert fetch is not None
                assert fetch._partial is not None
                host.spool.cancel(content_id)
                while not fetch._is_left_to_readers:
                    await trio.sleep(0.01)
                # Whoever opens a file now must not get the number that the reader has.
                others = [os.open("/dev/zero", os.O_RDONLY) for _ in range(8)]
                goes_on.set()
        for other in others:
            os.close(other)
        assert read == [CONTENT[:1000]]
        assert fetch._partial.fd == -1


async def test_who_purges_twice_at_once_is_told(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        order = host.knows(manifest_of(CONTENT, [lab.mirror(CONTENT)]))
        host.spool.demand(order)
        told: list[errors.DdfsError] = []

        async def purge() -> None:
            try:
                await host.spool.purge(order.content_id)
            except errors.TemplateInUseError as error:
                told.append(error)

        with trio.fail_after(90):
            path = Path((await host.spool.wait_published(order)).path)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(purge)
                nursery.start_soon(purge)
            assert not path.exists()
            assert [str(error) for error in told] == ["it is being deleted already"]
            await host.spool.read(order, ByteRange(0, 10))
