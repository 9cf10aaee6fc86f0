from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from fetch_target import random_bytes

from ddfs import errors
from ddfs.fetch.transport import Transport
from ddfs.model import ByteRange, MiB
from tests.mirrorlab.mirrorlab import KiB, MirrorLab

CONTENT = random_bytes(3 * MiB + 5)


async def test_a_document_is_read_whole(tmp_path):
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(CONTENT, name="x.meta4", fault="redirect")
        document = await transport.read_document(url, max_bytes=4 * MiB)
    assert document.data == CONTENT
    assert document.url == url + "?there"
    assert document.headers["etag"] == '"lab"'
    assert document.content_type is None


async def test_a_document_that_is_too_large_is_an_error_before_it_is_all_here():
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(random_bytes(16 * MiB))
        with pytest.raises(errors.DocumentError, match="larger"):
            await transport.read_document(url, max_bytes=64 * KiB)
        assert lab[url].bytes_sent < 16 * MiB


def packed(data: bytes, times: int = 1) -> bytes:
    for _ in range(times):
        data = gzip.compress(data, mtime=0)
    return data


@asynccontextmanager
async def answering(encoding: str, body: bytes) -> AsyncIterator[str]:
    """The address of a server that has one answer, whoever asks for what."""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            assert b"accept-encoding: identity" in (await stream.receive_some()).lower()
            head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\n"
            await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/x.meta4"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("encoding", ["gzip", "X-GZIP", "identity"])
async def test_a_document_that_comes_packed_is_the_document(encoding):
    body = CONTENT if encoding == "identity" else packed(CONTENT)
    async with answering(encoding, body) as url, Transport() as transport:
        document = await transport.read_document(url, max_bytes=len(CONTENT))
    assert document.data == CONTENT


@pytest.mark.parametrize(
    ("encoding", "body", "said"),
    [
        ("gzip, gzip", packed(bytes(64 * MiB), 2), "encoded"),
        ("br", b"x", "encoded"),
        ("gzip", packed(bytes(64 * MiB)), "larger than"),
        ("gzip", packed(bytes(MiB + 1)), "larger than"),
        ("gzip", packed(CONTENT[: MiB // 2])[:-1], "cut off"),
        ("gzip", packed(b"a") + packed(b"b"), "more behind"),
        ("gzip", CONTENT[:100], "broken gzip"),
    ],
)
async def test_what_unpacks_to_too_much_or_to_nothing(encoding, body, said):
    async with answering(encoding, body) as url, Transport() as transport:
        tracemalloc.start()
        try:
            with pytest.raises(errors.SourceError, match=said) as caught:
                await transport.read_document(url, max_bytes=MiB)
            # Less than the bombs unpack to by far.
            assert tracemalloc.get_traced_memory()[1] < 8 * MiB
        finally:
            tracemalloc.stop()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("404", "404"),
        ("redirect_loop", "circle"),
        ("redirect_chain", "circle|too often"),
        ("redirect_file", "only http"),
        ("redirect_malformed", "malformed address"),
        ("garbage", "."),
        ("refuse", "."),
        ("short", "."),
        ("endless_head", "."),
    ],
)
async def test_a_document_that_cannot_be_read_is_one_clear_error(fault, said):
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(CONTENT, fault=fault)
        with pytest.raises(errors.MirrorError, match=said) as caught, trio.fail_after(90):
            await transport.read_document(url, max_bytes=4 * MiB)
        assert caught.value.url == url
        assert 0 < len(caught.value.message) < 200
        assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:1/x", "cannot be connected to: connection refused"),
        ("http://nobody.invalid/x", "cannot be connected to: [A-Za-z]"),
    ],
)
async def test_nobody_there_is_said_without_numbers(address, said):
    async with Transport() as transport:
        with pytest.raises(errors.MirrorError, match=said) as caught:
            await transport.size_of(address)
        assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("fault", [None, "redirect", "no_range", "chunked", "http10"])
async def test_the_size_is_found(fault):
    async with MirrorLab() as lab, Transport() as transport:
        assert await transport.size_of(lab.mirror(CONTENT, fault=fault)) == len(CONTENT)


async def test_the_size_of_nothing():
    async with MirrorLab() as lab, Transport() as transport:
        assert await transport.size_of(lab.mirror(b"")) == 0


@pytest.mark.parametrize("fault", ["gzip", "404", "503"])
async def test_a_size_that_is_not_said_is_an_error(fault):
    async with MirrorLab() as lab, Transport() as transport:
        with pytest.raises(errors.MirrorError):
            await transport.size_of(lab.mirror(CONTENT, fault=fault))


@pytest.mark.parametrize("fault", [None, "redirect", "no_range", "chunked", "http10", "oversend"])
@pytest.mark.parametrize("size", [len(CONTENT), None])
async def test_a_small_range_is_exactly_what_was_asked(fault, size):
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(CONTENT, fault=fault)
        for start, end in ((0, 64 * KiB), (100, 101), (len(CONTENT) - 7, len(CONTENT))):
            got = await transport.read_range(url, ByteRange(start, end), size=size)
            assert got == CONTENT[start:end]


@pytest.mark.parametrize(
    "fault",
    ["wrong_size", "wrong_total", "wrong_content_range", "no_content_range", "gzip", "404",
     "overrange", "short", "reset", "416"],
)  # fmt: skip
async def test_a_range_that_is_not_what_was_asked_is_an_error(fault):
    async with MirrorLab() as lab, Transport() as transport:
        url = lab.mirror(CONTENT, fault=fault, after=10 * KiB)
        with pytest.raises(errors.MirrorError) as caught:
            await transport.read_range(url, ByteRange(0, 64 * KiB), size=len(CONTENT))
        assert caught.value.url == url


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "/x", "http://", "http://127.0.0.1:x/"])
async def test_what_is_no_address_is_an_error(url):
    async with Transport() as transport:
        with pytest.raises(errors.MirrorError):
            await transport.read_document(url, max_bytes=1)
        with pytest.raises(errors.MirrorError):
            await transport.size_of(url)
        with pytest.raises(errors.MirrorError):
            await transport.read_range(url, ByteRange(0, 1), size=None)
