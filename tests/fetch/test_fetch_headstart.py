"""First requests that are under way before there is an engine."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import trio
from fetch_target import file_target, manifest_of, random_bytes

from ddfs.fetch import headstart
from ddfs.fetch.address import Address
from ddfs.fetch.connection import Connection
from ddfs.fetch.headstart import MAX_AHEAD_BYTES, Headstart
from ddfs.fetch.transfer import Transfer
from ddfs.fetch.transport import Transport
from ddfs.model import MiB
from tests.mirrorlab.mirrorlab import MirrorLab

CONTENT = random_bytes(24 * MiB + 12345)


async def until(condition) -> None:
    with trio.fail_after(90):
        while not condition():
            await trio.sleep(0.01)


async def until_quiet(lab: MirrorLab) -> None:
    """Until the mirrors have sent nothing for a while."""
    sent = -1
    while sent != lab.bytes_sent:
        sent = lab.bytes_sent
        await trio.sleep(0.5)


async def fetch_with(begun: Headstart, manifest, path) -> bytes:
    with file_target(path) as target, trio.fail_after(90):
        async with Transport(begun) as transport:
            await Transfer(manifest, target, transport, observer=lambda event: None).run()
        return target.content()


def test_the_request_is_the_one_that_a_connection_makes():
    address = Address.parse("http://[::1]:8080/a%20b/c?d=e")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        asking = threading.Thread(
            target=Connection(address, ours).request, args=(address, 5, 9, time.monotonic() + 9)
        )
        asking.start()
        sent = theirs.recv(65536)
        theirs.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
        asking.join()
    assert headstart.request_of(address, 5, 9) == sent


@pytest.mark.parametrize("rate", [20 * MiB, None])
async def test_goes_on_with_what_was_begun(rate, tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, rate=rate) for _ in range(3)]
        manifest = manifest_of(CONTENT, urls)
        begun = headstart.begin(manifest, None, 16)
        await until(lambda: lab.requests == 3 and lab.bytes_sent > MiB)
        first = [lab[url].requests for url in urls]
        content = await fetch_with(begun, manifest, tmp_path / "partial")
        begun.close()
        assert content == CONTENT
        assert first == [1, 1, 1]
        for url in urls:
            ranges = lab[url].ranges
            assert len(ranges) == len(set(ranges)), "a range was asked for a second time"


async def test_what_comes_early_is_limited(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        manifest = manifest_of(CONTENT, [url])
        begun = headstart.begin(manifest, None, 16)
        await until(lambda: lab.bytes_sent >= MAX_AHEAD_BYTES)
        await until_quiet(lab)
        address = Address.parse(url)
        taken = [
            each
            for end in range(MiB, 25 * MiB, MiB)
            if (each := begun.take(address, 0, end - 1)) is not None
        ]
        assert len(taken) == 1
        assert MAX_AHEAD_BYTES <= len(taken[0].received) < MAX_AHEAD_BYTES + MiB
        taken[0].sock.close()


@pytest.mark.parametrize(
    "fault", ["refuse", "unreachable", "silent", "reset", "503_once", "garbage"]
)
async def test_a_bad_start_is_no_worse_than_none(fault, tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, fault=fault), lab.mirror(CONTENT)]
        manifest = manifest_of(CONTENT, urls)
        begun = headstart.begin(manifest, None, 16)
        await trio.sleep(0.05)
        assert await fetch_with(begun, manifest, tmp_path / "partial") == CONTENT
        begun.close()


async def test_another_request_gets_another_connection(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        address = Address.parse(url)
        begun = Headstart([(address, MiB, 2 * MiB - 1)])
        await until(lambda: lab[url].connections)
        assert begun.take(address, 0, MiB - 1) is None
        assert await fetch_with(begun, manifest_of(CONTENT, [url]), tmp_path / "p") == CONTENT
        begun.close()
        assert lab[url].connections >= 2


def test_asks_no_server_for_more_than_it_may_and_nobody_over_tls():
    with socket.create_server(("127.0.0.1", 0)) as server:
        plain = f"http://127.0.0.1:{server.getsockname()[1]}"
        urls = [f"{plain}/a", f"{plain}/b", "https://127.0.0.1:9/c", f"{plain}/d"]
        begun = headstart.begin(manifest_of(CONTENT, urls), None, 2)
        server.settimeout(90)
        accepted = [server.accept()[0] for _ in range(2)]
        server.settimeout(0.3)
        with pytest.raises(TimeoutError):
            server.accept()
        begun.close()
        for each in accepted:
            each.close()
