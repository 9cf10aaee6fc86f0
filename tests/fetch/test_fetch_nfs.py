"""Fetching from a real NFS server."""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.fetch.local import ElsewhereError
from ddfs.fetch.nfs import NfsAddress
from ddfs.fetch.scheduler import GIVE_UP_SECONDS
from ddfs.fetch.transport import Transport
from ddfs.metalink import write
from ddfs.model import ByteRange, MiB, Mirror
from tests.fetch.fetch_target import fetch, manifest_of, random_bytes
from tests.fetch.nfs_server import NfsServer, nfs_server, version_3_server, why_not
from tests.mirrorlab.mirrorlab import MirrorLab

CONTENT = random_bytes(9 * MiB + 321)

needs_server = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def server() -> Iterator[NfsServer]:
    # Not below /tmp, which may be a file system without file handles.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="ddfs-nfs-") as work:
        with nfs_server(Path(work)) as running:
            (running.export / "folder").mkdir()
            (running.export / "folder" / "an image.img").write_bytes(CONTENT)
            (running.export / "lie.img").write_bytes(bytes(len(CONTENT)))
            (running.export / "short.img").write_bytes(CONTENT[:-1])
            os.mkfifo(running.export / "fifo")
            yield running


@needs_server
@pytest.mark.parametrize("piece_length", [MiB, None])
async def test_a_file_on_an_nfs_server_is_a_mirror(
    server: NfsServer, tmp_path: Path, piece_length: int | None
) -> None:
    url = server.url("folder/an%20image.img")
    done = await fetch(manifest_of(CONTENT, [url], piece_length=piece_length), tmp_path / "x")
    assert done.content == CONTENT
    [mirror] = done.report.statistics.mirrors
    assert mirror.bytes_received >= len(CONTENT)


@needs_server
async def test_it_shares_the_work_with_others_and_a_lie_is_found(
    server: NfsServer, tmp_path: Path
) -> None:
    async with MirrorLab() as lab:
        urls = [server.url("lie.img"), lab.mirror(CONTENT, rate=20 * MiB)]
        done = await fetch(manifest_of(CONTENT, urls), tmp_path / "x")
    assert done.content == CONTENT
    assert done.report.statistics.mirrors[0].rejected_pieces > 0


@needs_server
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nothing.img", "no such file"),
        ("folder", r"directory|regular file"),
        ("fifo", "regular file|invalid"),
        ("short.img", f"has {len(CONTENT) - 1} bytes, not {len(CONTENT)}"),
    ],
)
async def test_what_cannot_be_fetched_is_said_at_once(
    server: NfsServer, tmp_path: Path, path: str, reason: str
) -> None:
    began = time.monotonic()
    with pytest.raises(errors.MirrorsExhaustedError, match=reason):
        await fetch(manifest_of(CONTENT, [server.url(path)]), tmp_path / "x")
    # An odd answer of the server is no reason to ask for ever.
    assert time.monotonic() - began < GIVE_UP_SECONDS


@needs_server
async def test_registering_reads_sizes_ranges_and_documents(server: NfsServer) -> None:
    url = server.url("folder/an%20image.img")
    async with Transport() as transport:
        assert await transport.size_of(url) == len(CONTENT)
        wanted = ByteRange(MiB - 5, 3 * MiB)
        assert await transport.read_range(url, wanted, size=None) == CONTENT[MiB - 5 : 3 * MiB]
        assert (await transport.read_document(url, max_bytes=10 * MiB)).data == CONTENT
        with pytest.raises(errors.DocumentError, match="more than"):
            await transport.read_document(url, max_bytes=MiB)
        with pytest.raises(errors.MirrorError, match="not 3"):
            await transport.read_range(url, ByteRange(0, MiB), size=3)
        end = len(CONTENT)
        with pytest.raises(errors.MirrorError, match="and not"):
            await transport.read_range(url, ByteRange(end - 1, end + 1), size=None)


@needs_server
async def test_a_document_may_name_mirrors_in_the_network_that_it_came_from(
    server: NfsServer,
) -> None:
    source = server.url("a.meta4")
    far = Mirror("http://10.9.8.7/a")
    async with MirrorLab() as lab, Transport() as transport:
        near = Mirror(lab.mirror(CONTENT))
        manifest = replace(manifest_of(CONTENT, []), mirrors=(near, far))
        (server.export / "a.meta4").write_text(write.make(manifest))
        inquiry = await transport.inquiry(Declaration(source))
        # Before anything was read nobody has named them.
        with pytest.raises(errors.MirrorError, match="loopback address"):
            await inquiry.size_of(near.url)
        await inquiry.read_document(source, max_bytes=MiB)
        assert await inquiry.size_of(near.url) == len(CONTENT)
        with pytest.raises(errors.MirrorError, match=r"10\.9\.8\.7 is a private address"):
            await inquiry.size_of(far.url)
        named = inquiry.attributed(manifest).mirrors
        assert [mirror.named_from for mirror in named] == ["127.0.0.0/8"] * 2


@needs_server
async def test_a_server_that_falls_silent_holds_up_nobody(
    server: NfsServer, tmp_path: Path
) -> None:
    url = server.url("folder/an%20image.img")
    async with Transport() as transport:
        assert await transport.size_of(url) == len(CONTENT)
        with server.silent():
            began = time.monotonic()
            with trio.move_on_after(0.3):
                await transport.size_of(url)
            # Not when the server is given up.
            assert time.monotonic() - began < 10
            async with MirrorLab() as lab:
                urls = [url, lab.mirror(CONTENT, rate=20 * MiB)]
                done = await fetch(manifest_of(CONTENT, urls), tmp_path / "x", limit=90)
            assert done.content == CONTENT
        assert await transport.size_of(url) == len(CONTENT)


@needs_server
def test_a_server_that_speaks_version_3_alone() -> None:
    # Not below /tmp, which may be a file system without file handles.
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp", prefix="ddfs-nfs-") as work,
        version_3_server(Path(work)) as server,
    ):
        (server.export / "an image.img").write_bytes(CONTENT)
        ddfs = Path(sys.executable).with_name("ddfs")
        checksum = ("--checksum", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
        copy = Path(work) / "copy"
        url = "nfs://127.0.0.1/export/an%20image.img"
        done = server.run(ddfs, "fetch", url, *checksum, "-o", copy)
        assert done.returncode == 0, done.stderr
        assert copy.read_bytes() == CONTENT
        lost = server.run(ddfs, "fetch", f"{url}.xz", *checksum, "-o", copy.with_suffix(".2"))
        assert (lost.returncode, "no such file" in lost.stderr) == (3, True)


async def test_nobody_there_is_said_at_once() -> None:
    async with Transport() as transport:
        with pytest.raises(errors.MirrorError, match="cannot be connected to"):
            await transport.size_of("nfs://127.0.0.1:1/export/x.img")


@pytest.mark.parametrize(
    "url",
    [
        "nfs://host",
        "nfs://host/",
        "nfs:///x",
        "nfs://host/x?uid=0",
        "nfs://me@host/x",
        "nfs://h:x/y",
    ],
)
def test_odd_addresses_are_refused(url: str) -> None:
    with pytest.raises(ElsewhereError):
        NfsAddress.parse(url)


def test_an_address_is_a_directory_and_a_file() -> None:
    found = NfsAddress.parse("nfs://Host:99/export/a%20b/c.img")
    assert found == NfsAddress("host", 99, "/export/a b", "c.img")
    assert NfsAddress.parse("nfs://host/c.img").directory == "/"


class Export:
    """A server on which files are replaced while clients have them open."""

    def __init__(self, size: int) -> None:
        self.size = size

    def open(self, *_arguments: object) -> "Opened":
        return Opened(self.size)


class Opened:
    is_paced = True

    def __init__(self, size: int) -> None:
        self.size, self.tag = size, f"tag-{size}"

    def read_into(self, position: int, view: memoryview, stop: object) -> int:
        view[:] = CONTENT[position : position + len(view)]
        return len(view)

    def close(self) -> None:
        pass


async def test_what_is_asked_about_it_is_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is still open says what was there when it was opened."""
    export, url = Export(MiB), "nfs://127.0.0.1/export/x.img"
    async with Transport() as transport:
        monkeypatch.setattr(transport.elsewhere, "_open", export.open)
        first = await transport.look_at(url)
        assert await transport.read_range(url, ByteRange(0, 10), size=MiB) == CONTENT[:10]
        export.size += 1
        second = await transport.look_at(url)
        assert (second.size, await transport.size_of(url)) == (MiB + 1, MiB + 1)
        assert second.validator != first.validator
