from __future__ import annotations

import ssl

import pytest
import trio
from fetch_target import fetch, manifest_of, random_bytes

from ddfs import errors
from ddfs.fetch.address import Address, AddressError
from ddfs.fetch.proxies import proxy_of, require_usable, shown, unreachable
from ddfs.fetch.transport import Transport
from ddfs.model import MiB
from tests.mirrorlab.mirrorlab import MirrorLab

CONTENT = random_bytes(MiB)


@pytest.mark.parametrize(
    ("no_proxy", "is_asked"),
    [
        ("10.0.0.0/8", True),
        ("127.0.0.0/8", False),
        (" 10.0.0.0/8 , 127.0.0.0/16", False),
        ("127.0.0.1/8", False),  # as others take it, host bits and all
        ("fe80::/10", True),
        ("127.0.0.0/99, nonsense/8", True),
        ("127.0.0.5", False),
        ("*", False),
    ],
)
def test_networks_without_a_proxy(no_proxy, is_asked, monkeypatch):
    monkeypatch.setenv("http_proxy", "proxy.example:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    proxy = proxy_of(Address.parse("http://127.0.0.5:8080/image"))
    assert proxy == ("http://proxy.example:3128" if is_asked else None)
    # A name may be looked up by the proxy alone: it is in no network.
    if "/" in no_proxy:
        assert proxy_of(Address.parse("http://mirror.example/image")) is not None


@pytest.mark.parametrize(
    "proxy",
    ["socks4://127.0.0.1:9", "nonsense://x", "http://", "http://user:secret@", "http://a:b:c"],
)
def test_what_is_no_proxy(proxy):
    with pytest.raises(AddressError, match="names the proxy") as caught:
        require_usable(proxy)
    assert "secret" not in str(caught.value)
    assert "socks5h://HOST:PORT" in str(caught.value)


@pytest.mark.parametrize(
    "proxy", ["http://proxy", "https://u:p@proxy:1", "socks5://[::1]:1080", "socks5h://proxy:1"]
)
def test_what_is_one(proxy):
    require_usable(proxy)


def test_a_login_is_not_shown():
    assert shown("http://user:p@ss@proxy.example:3128") == "http://proxy.example:3128"
    assert shown("nonsense") == "nonsense"


def test_a_certificate_behind_a_proxy_is_not_the_proxys_fault():
    error = Exception("outer")
    error.__cause__ = ssl.SSLCertVerificationError("certificate verify failed")
    assert unreachable("http://proxy", error) is None
    assert "cannot be connected to: outer" in str(unreachable("http://proxy", Exception("outer")))


async def test_a_proxy_that_cannot_be_one_ends_the_fetch_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("all_proxy", "socks4://user:secret@127.0.0.1:9")
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        with pytest.raises(errors.MirrorsExhaustedError, match="socks4") as caught:
            await fetch(manifest_of(CONTENT, [url]), tmp_path / "partial", limit=90)
        assert "secret" not in str(caught.value)
        async with Transport() as transport:
            with pytest.raises(errors.MirrorError, match="socks4"):
                await transport.size_of(url)
        assert lab.requests == 0


async def test_a_proxy_that_is_not_there_is_what_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("ddfs.fetch.mirrors.MAX_FAILURES", 1)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
    wanted = rf"the proxy http://127\.0\.0\.1:{port} cannot be connected to: .*refused"
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        with pytest.raises(errors.MirrorsExhaustedError, match=wanted):
            await fetch(manifest_of(CONTENT, [url]), tmp_path / "partial", limit=90)
        assert lab.requests == 0
