"""Ways to a mirror that are not straight: proxies, and names with several addresses."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from fetch_target import fetch, manifest_of, random_bytes

from ddfs import errors
from ddfs.fetch.transport import CONNECT_SECONDS, Transport
from ddfs.model import ByteRange, MiB
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.mirrorlab.socks import SocksProxy

CONTENT = random_bytes(9 * MiB + 12345)


@asynccontextmanager
async def running(proxy: SocksProxy) -> AsyncIterator[int]:
    """*proxy* at the port that it yields."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, proxy.serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("variable", ["all_proxy", "ALL_PROXY", "http_proxy"])
async def test_a_socks_proxy_is_the_way_to_everything(variable, tmp_path, monkeypatch):
    proxy = SocksProxy()
    async with MirrorLab() as lab, running(proxy) as port:
        monkeypatch.setenv(variable, f"socks5://127.0.0.1:{port}")
        urls = [lab.mirror(CONTENT) for _ in range(2)]
        done = await fetch(manifest_of(CONTENT, urls), tmp_path / "partial")
        assert done.content == CONTENT
        ports = {int(url.split(":")[2].split("/")[0]) for url in urls}
        assert {port for _, port in proxy.asked} == ports
        before = len(proxy.asked)
        async with Transport() as transport:
            assert await transport.size_of(urls[0]) == len(CONTENT)
            assert await transport.read_range(urls[0], ByteRange(5, 9), size=None) == CONTENT[5:9]
        assert len(proxy.asked) > before


# Where a proxy refuses, httpcore 1.0 leaves its socket to be closed by reference counting.
refusing = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def impatient(monkeypatch):
    """One failure is enough: that a mirror is tried again is not what is tested here."""
    monkeypatch.setattr("ddfs.fetch.mirrors.MAX_FAILURES", 1)
    yield
    # From Python 3.13 on that socket is part of a cycle, and the next test would get the warning.
    gc.collect()


@refusing
@pytest.mark.usefixtures("impatient")
async def test_a_name_is_looked_up_by_the_proxy_and_not_here(tmp_path, monkeypatch):
    proxy = SocksProxy()
    async with MirrorLab() as lab, running(proxy) as port:
        monkeypatch.setenv("all_proxy", f"socks5h://127.0.0.1:{port}")
        url = lab.mirror(CONTENT, host="127.0.0.1").replace("127.0.0.1", "mirror.invalid")
        with pytest.raises(errors.MirrorsExhaustedError), trio.fail_after(90):
            await fetch(manifest_of(CONTENT, [url]), tmp_path / "partial")
        assert {host for host, _ in proxy.asked} == {"mirror.invalid"}


async def test_what_no_proxy_names_is_asked_straight(tmp_path, monkeypatch):
    proxy = SocksProxy()
    async with MirrorLab() as lab, running(proxy) as port:
        monkeypatch.setenv("all_proxy", f"socks5://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "127.0.0.77,.example.org")
        straight = lab.mirror(CONTENT, host="127.0.0.77")
        through = lab.mirror(CONTENT, host="127.0.0.78")
        # One after the other: together, one of both may bring all of it before the other one.
        for number, mirror in enumerate([straight, through]):
            done = await fetch(manifest_of(CONTENT, [mirror]), tmp_path / f"partial{number}")
            assert done.content == CONTENT
        assert lab[straight].requests > 0
        assert {host for host, _ in proxy.asked} == {"127.0.0.78"}


async def test_a_proxy_that_wants_a_login_gets_it(tmp_path, monkeypatch):
    proxy = SocksProxy(login=("user", "pass word"))
    async with MirrorLab() as lab, running(proxy) as port:
        url = lab.mirror(CONTENT)
        monkeypatch.setenv("all_proxy", f"socks5://user:pass%20word@127.0.0.1:{port}")
        done = await fetch(manifest_of(CONTENT, [url]), tmp_path / "partial")
        assert done.content == CONTENT
        assert proxy.refused == 0


@refusing
@pytest.mark.usefixtures("impatient")
async def test_a_proxy_that_refuses_is_said_with_the_mirror_and_without_the_login(
    tmp_path, monkeypatch
):
    proxy = SocksProxy(login=("user", "right"))
    async with MirrorLab() as lab, running(proxy) as port:
        url = lab.mirror(CONTENT)
        monkeypatch.setenv("all_proxy", f"socks5://user:secret@127.0.0.1:{port}")
        with pytest.raises(errors.MirrorsExhaustedError) as caught, trio.fail_after(90):
            await fetch(manifest_of(CONTENT, [url]), tmp_path / "partial")
        assert url in str(caught.value)
        assert "secret" not in str(caught.value)
        assert proxy.refused > 0
        assert lab.requests == 0, "it went another way than through the proxy"


class Names(trio.abc.HostnameResolver):
    """Says that mirror.test has *addresses*, in that order."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        assert host in (b"mirror.test", "mirror.test")
        found = []
        for address in self._addresses:
            kind = socket.AF_INET6 if ":" in address else socket.AF_INET
            if family in (0, kind):
                found += socket.getaddrinfo(address, port, kind, type, proto, flags)
        return found

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.mark.parametrize("dead", ["::1", "127.0.0.66"])
async def test_of_several_addresses_the_one_that_answers_is_used(dead, tmp_path):
    before = trio.socket.set_custom_hostname_resolver(Names(dead, "127.0.0.67"))
    try:
        async with MirrorLab() as lab:
            url = lab.mirror(CONTENT, host="127.0.0.67")
            port = url.split(":")[2].split("/")[0]
            named = f"http://mirror.test:{port}/image.img"
            done = await fetch(manifest_of(CONTENT, [named]), tmp_path / "partial", limit=90)
        assert done.content == CONTENT
    finally:
        trio.socket.set_custom_hostname_resolver(before)


async def test_an_address_that_never_answers_does_not_hold_up_the_others(tmp_path):
    before = trio.socket.set_custom_hostname_resolver(Names("127.0.0.68", "127.0.0.69"))
    try:
        async with MirrorLab() as lab:
            url = lab.mirror(CONTENT, host="127.0.0.69")
            port = int(url.split(":")[2].split("/")[0])
            with socket.socket() as silent:
                # A full queue of connections: the kernel drops the next one.
                silent.bind(("127.0.0.68", port))
                silent.listen(0)
                fillers = [socket.socket() for _ in range(3)]
                for filler in fillers:
                    filler.setblocking(False)
                    filler.connect_ex(("127.0.0.68", port))
                begun = trio.current_time()
                named = f"http://mirror.test:{port}/image.img"
                done = await fetch(manifest_of(CONTENT, [named]), tmp_path / "partial")
                for filler in fillers:
                    filler.close()
        assert done.content == CONTENT
        assert trio.current_time() - begun < CONNECT_SECONDS
    finally:
        trio.socket.set_custom_hostname_resolver(before)
