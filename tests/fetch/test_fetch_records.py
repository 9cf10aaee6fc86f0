"""TLS records that are read many at once are those that ssl reads one by one."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import trustme
from fetch_target import fetch, manifest_of, random_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfs.fetch import connection, records
from ddfs.fetch.records import Records, records_of
from ddfs.model import KiB, MiB
from tests.mirrorlab.mirrorlab import MirrorLab

CONTENT = random_bytes(6 * MiB + 123)

compiled = pytest.mark.skipif(
    records._reader(records.LIBRARY) is None, reason="no compiler, or another Python"
)


@dataclass
class Server:
    """The other end: what it writes is encrypted, and sent when a test does so."""

    raw: socket.socket
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    def encrypted(self, data: bytes) -> bytearray:
        self.tls.write(data)
        return bytearray(self.outgoing.read())

    def send(self, data: bytes) -> None:
        self.raw.sendall(self.encrypted(data))


def trusting() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


CONTEXTS = trusting()


@contextlib.contextmanager
def connected() -> Iterator[tuple[ssl.SSLSocket, Server]]:
    """A client that does not block, after its handshake."""
    near, far = socket.socketpair()
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MiB)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with far, near:
        near.setblocking(False)
        far.setblocking(False)
        client = CONTEXTS[1].wrap_socket(
            near, server_hostname="127.0.0.1", do_handshake_on_connect=False
        )
        tls = CONTEXTS[0].wrap_bio(incoming, outgoing, server_side=True)
        server = Server(far, tls, incoming, outgoing)
        shaken: set[object] = set()
        while len(shaken) < 2:
            for each in (client, tls):
                with contextlib.suppress(ssl.SSLWantReadError):
                    each.do_handshake()
                    shaken.add(each)
                far.sendall(outgoing.read())
                with contextlib.suppress(BlockingIOError):
                    incoming.write(far.recv(MiB))
        far.setblocking(True)
        with client:
            yield client, server


def read_all(found: Records, size: int) -> bytes:
    """What is there, in reads of *size*."""
    content, buffer = b"", bytearray(size)
    while count := found.read_into(memoryview(buffer)):
        content += buffer[:count]
    return content


def readable(sock: ssl.SSLSocket) -> Records:
    found = records_of(sock)
    assert found is not None
    return found


@compiled
@settings(deadline=None, max_examples=20)
@given(st.lists(st.binary(min_size=1, max_size=40_000), max_size=4), st.integers(1, 50_000))
def test_what_comes_is_what_was_sent(parts, size):
    with connected() as (client, server):
        found = readable(client)
        for part in parts:
            server.send(part)
        assert read_all(found, size) == b"".join(parts)
        # Nothing waits; and ssl goes on where this ended.
        with pytest.raises(ssl.SSLWantReadError):
            client.recv(1)
        server.send(b"more")
        assert client.recv(10) == b"more"


@compiled
def test_several_records_come_at_once_but_not_without_end():
    with connected() as (client, server):
        found, buffer = readable(client), bytearray(MiB)
        server.send(CONTENT[: 100 * KiB])
        assert found.read_into(memoryview(buffer)) == 100 * KiB
        assert buffer[: 100 * KiB] == CONTENT[: 100 * KiB]
        server.send(CONTENT[: 400 * KiB])
        assert found.read_into(memoryview(buffer)) == records.VISIT_BYTES


@compiled
def test_at_the_end_ssl_says_so():
    with connected() as (client, server):
        found = readable(client)
        data = server.encrypted(b"last")
        with contextlib.suppress(ssl.SSLWantReadError):
            server.tls.unwrap()
        server.raw.sendall(data + server.outgoing.read())
        assert read_all(found, 100) == b"last"
        assert client.recv(1) == b""


@compiled
def test_a_wrong_record_is_none_and_no_other_connection_suffers():
    with connected() as (client, server), connected() as (other, other_server):
        found, other_found = readable(client), readable(other)
        server.send(b"right")
        wrong = server.encrypted(b"wrong")
        wrong[-1] ^= 1
        server.raw.sendall(wrong)
        assert found.read_into(memoryview(bytearray(100))) == 5
        # OpenSSL keeps errors for a thread: this one is not the other's.
        with pytest.raises(ssl.SSLWantReadError):
            other.recv(1)
        other_server.send(b"well")
        assert read_all(other_found, 100) == b"well"
        with pytest.raises(ssl.SSLError, match=r"(?i)bad record mac"):
            found.read_into(memoryview(bytearray(100)))


@compiled
@pytest.mark.parametrize("more_is_there", [True, False])
def test_an_error_of_somebody_else_loses_no_byte(more_is_there):
    with connected() as (client, server):
        server.send(b"first")
        rest = server.encrypted(b"rest")

        def blamed(connection: int, start: Any, count: int) -> int:
            """As when OpenSSL has an older error for the thread, and the rest comes just then."""
            if more_is_there:
                server.raw.sendall(rest)
            return -genuine._read(connection, start, 5)

        genuine = readable(client)
        found, buffer = Records(client, blamed, genuine._connection), bytearray(100)
        assert found.read_into(memoryview(buffer)) == 5
        assert buffer[:5] == b"first"
        if not more_is_there:
            server.raw.sendall(rest)
        found._read = genuine._read
        assert read_all(found, 100) == b"rest"


class Writing:
    """A socket that has to write before it can read, as TLS may ask for."""

    def recv(self, _count: int) -> bytes:
        raise ssl.SSLWantWriteError


def test_who_has_to_write_first_reads_on_afterwards():
    counts = iter((-5, 3))
    sock: Any = Writing()
    found = Records(sock, lambda _connection, _start, _count: next(counts), 0)
    buffer = memoryview(bytearray(10))
    assert found.read_into(buffer) == 5
    assert found.read_into(buffer) == 3


@compiled
def test_a_failure_keeps_no_buffer():
    with connected() as (client, server):
        found, buffer = readable(client), bytearray(100)
        server.send(b"right")
        wrong = server.encrypted(b"wrong")
        wrong[-1] ^= 1
        server.raw.sendall(wrong)
        assert found.read_into(memoryview(buffer)) == 5
        # pytest.raises would hold it.
        with contextlib.suppress(ssl.SSLError):
            found.read_into(memoryview(buffer))
        buffer.clear()  # a BufferError while somebody has it


@compiled
def test_nothing_is_read_from_what_is_closed():
    with connected() as (client, _):
        found = readable(client)
        client.close()
        with pytest.raises(OSError, match="closed"):
            found.read_into(memoryview(bytearray(10)))


@compiled
def test_where_it_is_cut_off_the_bytes_before_count():
    with connected() as (client, server):
        found = readable(client)
        server.send(b"all")
        server.raw.close()
        assert read_all(found, 100) == b"all"
        assert client.recv(1) == b""


@compiled
def test_a_first_record_that_is_wrong_is_called_so():
    with connected() as (client, server):
        wrong = server.encrypted(b"wrong")
        wrong[-1] ^= 1
        server.raw.sendall(wrong)
        assert readable(client).read_into(memoryview(bytearray(100))) == 0
        with pytest.raises(ssl.SSLError, match=r"(?i)bad record mac"):
            client.recv(1)


@dataclass(eq=False)
class Stranger:
    """What has the attributes of a socket, and is none."""

    _sslobj: object
    context: ssl.SSLContext | None


@compiled
def test_nothing_is_taken_for_a_connection_that_is_not_known():
    with connected() as (client, _):
        assert records._connection_of(client) is not None
        mixed = Stranger(_sslobj=client._sslobj, context=client.context)
        assert records._connection_of(mixed) is None
        assert records._connection_of(Stranger(_sslobj=None, context=None)) is None
        assert records._connection_of(Stranger(_sslobj=object(), context=None)) is None


def test_without_the_library_nothing_is_read_so(tmp_path):
    assert records._reader(tmp_path / "none.so.1") is None


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_file_comes_over_tls_with_and_without(tmp_path, monkeypatch, is_there):
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.2", "127.0.0.3").configure_cert(context)
    made: list[Records | None] = []

    def counting(sock: ssl.SSLSocket) -> Records | None:
        made.append(records_of(sock) if is_there else None)
        return made[-1]

    monkeypatch.setattr(connection, "records_of", counting)
    with authority.cert_pem.tempfile() as trusted:
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        async with MirrorLab() as lab:
            urls = [
                lab.mirror(CONTENT, tls=context, host="127.0.0.2"),
                lab.mirror(CONTENT, tls=context, host="127.0.0.3", fault="reset", after=2 * MiB),
            ]
            for piece_length in (None, MiB):
                manifest = manifest_of(CONTENT, urls, piece_length=piece_length)
                done = await fetch(manifest, tmp_path / f"partial-{piece_length}")
                assert done.content == CONTENT
    assert made
    if records._reader(records.LIBRARY) is not None:
        assert all((each is not None) == is_there for each in made)
