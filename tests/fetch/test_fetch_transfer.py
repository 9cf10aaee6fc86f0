"""The shell: resuming, cancelling, readers, errors of the disk, TLS, a proxy, IPv6."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import trio
import trustme
from fetch_target import FileTarget, fetch, file_target, manifest_of, random_bytes

from ddfs import errors
from ddfs.fetch.events import MirrorBlamed, PieceVerified
from ddfs.fetch.scheduler import SILENCE_SECONDS
from ddfs.fetch.transfer import PieceRecord, Transfer
from ddfs.fetch.transport import Transport
from ddfs.model import ByteRange, MiB
from tests.mirrorlab.mirrorlab import MirrorLab

CONTENT = random_bytes(24 * MiB + 12345)
PIECES = 25


async def test_reports_who_sent_what(tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, rate=rate * MiB) for rate in (20, 10)]
        done = await fetch(manifest_of(CONTENT, urls), tmp_path / "partial")
    figures = done.report.statistics
    assert done.report.size == figures.size == figures.bytes_verified == len(CONTENT)
    received = sum(m.bytes_received for m in figures.mirrors)
    assert received == len(CONTENT) + figures.refetched_bytes
    assert [m.url for m in figures.mirrors] == urls
    assert all(m.bytes_received > 0 and m.state == "idle" for m in figures.mirrors)
    assert done.report.comparisons == 1
    assert sorted(e.piece for e in done.of(PieceVerified)) == list(range(PIECES))
    assert sorted(done.journal) == list(range(PIECES))


@pytest.mark.parametrize("piece_length", [MiB, None])
async def test_what_is_journaled_is_not_fetched_again(piece_length, tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, rate=10 * MiB)
        manifest = manifest_of(CONTENT, [url], piece_length=piece_length)
        path = tmp_path / "partial"
        journal: dict[int, PieceRecord] = {}
        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:

                async def begin() -> None:
                    await fetch(manifest, path, journal=journal)

                nursery.start_soon(begin)
                while len(journal) < 12:
                    await trio.sleep(0.02)
                nursery.cancel_scope.cancel()
        here = len(journal)
        await trio.sleep(0.3)  # the server may not have seen yet that nobody reads on
        sent = lab.bytes_sent
        assert 12 <= here < PIECES
        for record in journal.values():
            start = record.piece * MiB
            assert path.read_bytes()[start : start + MiB] == CONTENT[start : start + MiB]
        lab[url].rate = None
        done = await fetch(manifest, path, journal=journal)
        assert done.content == CONTENT
        assert done.report.bytes_resumed >= here * MiB - MiB
        # Some of it may be asked for twice; what is here is much more.
        assert lab.bytes_sent - sent <= len(CONTENT) - here * MiB // 2


async def test_a_cancelled_fetch_commits_what_it_has_and_stops_writing(tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, rate=10 * MiB), lab.mirror(CONTENT, fault="silent")]
        verified: list = []
        with file_target(tmp_path / "partial") as target:
            async with Transport() as transport:
                transfer = Transfer(
                    manifest_of(CONTENT, urls), target, transport, observer=verified.append
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(transfer.run)
                    with trio.fail_after(90):
                        while not any(isinstance(e, PieceVerified) for e in verified):
                            await trio.sleep(0.01)
                    await trio.sleep(0.5)
                    nursery.cancel_scope.cancel()
                pieces = {e.piece for e in verified if isinstance(e, PieceVerified)}
                assert pieces
                assert pieces == set(target.journal)
                before = target.content()
                await trio.sleep(0.3)
                assert target.content() == before


async def test_is_cancelled_at_once_whatever_the_mirrors_do(tmp_path):
    async with MirrorLab() as lab:
        faults = ("silent", "stall", "unreachable", "drip")
        urls = [lab.mirror(CONTENT, fault=fault) for fault in faults]
        begun = trio.current_time()
        with trio.move_on_after(0.7):
            await fetch(manifest_of(CONTENT, urls), tmp_path / "partial")
        # Not when the first of them is given up.
        assert trio.current_time() - begun < SILENCE_SECONDS


async def test_commits_while_pieces_arrive(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, rate=10 * MiB)
        with file_target(tmp_path / "partial") as target:
            async with Transport() as transport:
                transfer = Transfer(
                    manifest_of(CONTENT, [url]), target, transport, observer=lambda event: None
                )
                await transfer.run()
            assert len(target.commits) >= 3
            assert sorted(p for commit in target.commits for p in commit) == list(range(PIECES))


async def test_a_reader_is_served_before_the_rest_of_the_file(tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, rate=6 * MiB) for _ in range(2)]
        order: list[int] = []

        def observe(event):
            if isinstance(event, PieceVerified):
                order.append(event.piece)

        with file_target(tmp_path / "partial") as target:
            async with Transport() as transport, trio.open_nursery() as nursery:
                transfer = Transfer(manifest_of(CONTENT, urls), target, transport, observer=observe)
                last = ByteRange(len(CONTENT) - 10, len(CONTENT) + 100)
                assert not transfer.is_verified(last)
                nursery.start_soon(transfer.run)
                await trio.sleep(0.3)
                transfer.want(last)
                with trio.fail_after(90):
                    while not transfer.is_verified(last):
                        await trio.sleep(0.01)
                # Without anybody who wants it, it is one of the last.
                assert order.index(PIECES - 1) < PIECES // 2
                nursery.cancel_scope.cancel()


async def test_without_piece_hashes_no_reader_gets_anything_early(tmp_path):
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)], piece_length=None)
        with file_target(tmp_path / "partial") as target:
            async with Transport() as transport:
                seen: list = []
                transfer = Transfer(manifest, target, transport, observer=seen.append)
                transfer.want(ByteRange(0, 10))
                await transfer.run()
                assert not transfer.is_verified(ByteRange(0, 10))
                assert not any(isinstance(e, PieceVerified) for e in seen)


async def test_the_preferred_location_comes_first(tmp_path):
    small = CONTENT[: 100 * 1024]
    async with MirrorLab() as lab:
        far, near = lab.mirror(small), lab.mirror(small)
        manifest = manifest_of(small, [far, near])
        mirrors = (manifest.mirrors[0], replace(manifest.mirrors[1], location="de"))
        with file_target(tmp_path / "partial") as target:
            async with Transport() as transport:
                transfer = Transfer(
                    replace(manifest, mirrors=mirrors),
                    target,
                    transport,
                    observer=lambda event: None,
                    location="de",
                )
                await transfer.run()
        assert (lab[far].requests, lab[near].requests) == (0, 1)


async def test_readers_everywhere_never_break_the_file(tmp_path):
    """Wants cut runs at random moments while their threads write: no byte has two owners."""
    chance = random.Random(5)
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, rate=rate * MiB) for rate in (15, 10, 5, 1)]
        manifest = manifest_of(CONTENT, urls, piece_length=256 * 1024)
        with file_target(tmp_path / "partial") as target:
            async with Transport() as transport, trio.open_nursery() as nursery:
                transfer = Transfer(manifest, target, transport, observer=lambda event: None)

                async def read():
                    while True:
                        await trio.lowlevel.checkpoint()
                        start = chance.randrange(len(CONTENT))
                        wanted = ByteRange(start, start + 100_000)
                        transfer.want(wanted)
                        while not transfer.is_verified(wanted):
                            await trio.sleep(0.01)
                        end = min(wanted.end, len(CONTENT))
                        assert os.pread(target.fd, end - start, start) == CONTENT[start:end]

                for _ in range(6):
                    nursery.start_soon(read)
                with trio.fail_after(90):
                    report = await transfer.run()
                nursery.cancel_scope.cancel()
            assert target.content() == CONTENT
            assert report.statistics.refetched_bytes < len(CONTENT)


async def test_piece_hashes_alone_are_enough(tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, fault="corrupt"), lab.mirror(CONTENT)]
        done = await fetch(manifest_of(CONTENT, urls, whole=False), tmp_path / "partial")
        assert done.content == CONTENT
        assert done.report.comparisons == 0


@pytest.mark.parametrize(
    "error", [errors.StorageFullError("no room"), errors.StorageError("broken")]
)
async def test_a_journal_that_cannot_be_written_ends_the_fetch(error, tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, rate=10 * MiB)
        with file_target(tmp_path / "partial") as target:
            target.error = error
            async with Transport() as transport:
                transfer = Transfer(
                    manifest_of(CONTENT, [url]), target, transport, observer=lambda event: None
                )
                with pytest.raises(type(error)), trio.fail_after(90):
                    await transfer.run()


async def test_a_full_disk_is_said_to_be_full(tmp_path):
    """/dev/full is the honest one: every write to it fails with ENOSPC."""

    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        with file_target(tmp_path / "partial") as target:
            os.dup2(fd := os.open("/dev/full", os.O_RDWR), target.fd)
            os.close(fd)
            async with Transport() as transport:
                transfer = Transfer(manifest, target, transport, observer=lambda event: None)
                with pytest.raises(errors.StorageFullError, match="room"), trio.fail_after(90):
                    await transfer.run()


@pytest.mark.parametrize("piece_length", [MiB, None])
async def test_what_somebody_cut_off_is_fetched_again(piece_length, tmp_path):
    """Its hashes were made in memory while it came, and are right."""
    content = CONTENT[: 6 * MiB]
    async with MirrorLab() as lab:
        urls = [lab.mirror(content, rate=6 * MiB) for _ in range(2)]
        manifest = manifest_of(content, urls, piece_length=piece_length)

        async def cut() -> None:
            while lab.bytes_sent < 4 * MiB:
                await trio.sleep(0.01)
            os.truncate(tmp_path / "partial", 0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            done = await fetch(manifest, tmp_path / "partial")
        assert done.content == content
        assert not done.of(MirrorBlamed)
        assert lab.bytes_sent > 1.2 * len(content)


@pytest.mark.parametrize("piece_length", [MiB, None])
async def test_what_is_cut_off_while_it_goes_to_disk_is_fetched_again(piece_length, tmp_path):
    """The whole file was compared before; bringing it to disk takes its time."""
    content = CONTENT[: 3 * MiB]

    class CutTarget(FileTarget):
        cuts = 0

        async def commit(self, records):
            await super().commit(records)
            if transfer._whole.comparisons and not self.cuts:
                self.cuts += 1
                os.truncate(self.path, MiB)
                os.truncate(self.path, len(content))

    async with MirrorLab() as lab:
        manifest = manifest_of(content, [lab.mirror(content)], piece_length=piece_length)
        target = CutTarget(tmp_path / "partial")
        try:
            async with Transport() as transport:
                transfer = Transfer(manifest, target, transport, observer=lambda event: None)
                with trio.fail_after(90):
                    await transfer.run()
        finally:
            os.close(target.fd)
    assert target.cuts == 1
    assert target.content() == content


@pytest.mark.parametrize("state", ["rotten", "cut"])
async def test_what_an_earlier_run_left_is_looked_at_without_a_whole_file_hash(state, tmp_path):
    """Nothing but its own hash says then that a resumed piece is still right."""
    content = CONTENT[: 4 * MiB]
    damaged = bytearray(content)
    damaged[MiB + 5 : MiB + 9] = b"\0\0\0\0"
    path = tmp_path / "partial"
    path.write_bytes(damaged if state == "rotten" else content[: MiB + 4096])
    os.truncate(path, len(content))
    journal = {piece: PieceRecord(piece, "http://gone/", b"") for piece in range(3)}
    async with MirrorLab() as lab:
        manifest = manifest_of(content, [lab.mirror(content)], whole=False)
        done = await fetch(manifest, path, journal=journal)
    assert done.content == content
    assert sorted(done.journal) == list(range(4))
    assert not done.of(MirrorBlamed)


async def test_a_file_that_somebody_cut_off_is_noticed(tmp_path):
    journal = {0: PieceRecord(0, "http://gone/", b"")}
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT[: 2 * MiB], [lab.mirror(CONTENT[: 2 * MiB], fault="silent")])
        with pytest.raises(errors.StorageError, match="shorter"):
            await fetch(manifest, tmp_path / "partial", journal=journal, limit=90)


async def test_https_with_a_certificate_that_the_host_trusts(tmp_path, monkeypatch):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "127.0.0.2", "127.0.0.3").configure_cert(context)
    with authority.cert_pem.tempfile() as trusted:
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        async with MirrorLab() as lab:
            urls = [
                lab.mirror(CONTENT, tls=context, host="127.0.0.2"),
                lab.mirror(CONTENT, tls=context, host="127.0.0.3", fault="reset", after=5 * MiB),
            ]
            done = await fetch(manifest_of(CONTENT, urls), tmp_path / "partial")
            assert done.content == CONTENT
            assert urls[0].startswith("https://127.0.0.2:")
            async with Transport() as transport:
                assert await transport.size_of(urls[0]) == len(CONTENT)


async def test_https_with_a_certificate_that_nobody_trusts(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.2").configure_cert(context)
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, tls=context, host="127.0.0.2")
        with pytest.raises(errors.MirrorsExhaustedError, match="certificate"):
            await fetch(manifest_of(CONTENT, [url]), tmp_path / "partial", limit=90)


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
async def test_ipv6(tmp_path):
    async with MirrorLab() as lab:
        try:
            url = lab.mirror(CONTENT, host="::1")
        except OSError as error:
            pytest.skip(f"this host has no IPv6 on loopback: {error}")
        assert (await fetch(manifest_of(CONTENT, [url]), tmp_path / "partial")).content == CONTENT


class Proxy:
    """An HTTP proxy for plain GETs: it forwards bytes, and keeps the request lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                part = await stream.receive_some(65536)
                if not part:
                    return
                head += part
            line, rest = head.split(b"\r\n", 1)
            self.lines.append(line)
            verb, url, version = line.split(b" ")
            host, path = url.removeprefix(b"http://").split(b"/", 1)
            name, port = host.decode().rsplit(":", 1)
            async with await trio.open_tcp_stream(name, int(port)) as upstream:
                await upstream.send_all(
                    b"%b /%b %b\r\nConnection: close\r\n%b" % (verb, path, version, rest)
                )
                try:
                    async for part in upstream:
                        await stream.send_all(part)
                except trio.BrokenResourceError:
                    return


async def test_behind_a_proxy_the_bulk_goes_through_it(tmp_path, monkeypatch):
    proxy = Proxy()
    async with MirrorLab() as lab, trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, proxy.serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        through = lab.mirror(CONTENT, host="127.0.0.9")
        direct = lab.mirror(CONTENT, rate=6 * MiB, host="127.0.0.8")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "127.0.0.8")
        done = await fetch(manifest_of(CONTENT, [through, direct]), tmp_path / "partial")
        assert done.content == CONTENT
        assert proxy.lines
        assert all(through.encode() in line for line in proxy.lines)
        assert lab[direct].requests > 0
        nursery.cancel_scope.cancel()


def test_importing_the_engine_loads_nothing_heavy():
    """`ddfs fetch` has 0.2 s until its first request."""
    code = (
        "import sys, ddfs.fetch.transfer, ddfs.fetch.transport\n"
        "heavy = {'httpx', 'httpcore', 'typer', 'rich', 'urllib.request', 'http.client',"
        " 'email', 'asyncio', 'sqlalchemy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_a_fetch_that_nobody_answers_gives_up(tmp_path, monkeypatch):
    """The limits themselves are the scheduler's, tested there; here: that they end the run."""
    monkeypatch.setattr("ddfs.fetch.scheduler.GIVE_UP_SECONDS", 1.5)
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, fault=fault) for fault in ("silent", "stall")]
        begun = time.monotonic()
        with pytest.raises(errors.MirrorsExhaustedError, match="no mirror delivers"):
            await fetch(manifest_of(CONTENT, urls), tmp_path / "partial", limit=90)
        assert time.monotonic() - begun < 50
