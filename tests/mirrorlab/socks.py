"""A SOCKS5 proxy (RFC 1928, with the login of RFC 1929) that connects and counts."""

from __future__ import annotations

import socket
import struct

import trio

_SUCCEEDED, _REFUSED = 0, 5


class SocksProxy:
    """Serve it with ``trio.serve_listeners(proxy.serve, …)``.

    ``asked`` has the host and port of each connection that it was asked for; with *login*,
    a user and a password, it wants those.
    """

    def __init__(self, login: tuple[str, str] | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.refused = 0
        self._login = login

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await self._converse(_Reader(stream))
            except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                return

    async def _converse(self, reader: _Reader) -> None:
        stream = reader.stream
        _, count = await reader.read(2)
        offered = await reader.read(count)
        method = 0 if self._login is None else 2
        if method not in offered:
            self.refused += 1
            await stream.send_all(b"\x05\xff")
            return
        await stream.send_all(bytes([5, method]))
        if method == 2 and not await self._log_in(reader):
            return
        host, port = await self._request(reader)
        self.asked.append((host, port))
        try:
            target = await trio.open_tcp_stream(host, port)
        except OSError:
            await stream.send_all(bytes([5, _REFUSED, 0, 1]) + bytes(6))
            return
        await stream.send_all(bytes([5, _SUCCEEDED, 0, 1]) + bytes(6))
        async with target, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, stream, target, nursery.cancel_scope)
            nursery.start_soon(self._pump, target, stream, nursery.cancel_scope)

    async def _log_in(self, reader: _Reader) -> bool:
        await reader.read(1)
        user = (await reader.read((await reader.read(1))[0])).decode()
        password = (await reader.read((await reader.read(1))[0])).decode()
        is_right = (user, password) == self._login
        self.refused += not is_right
        await reader.stream.send_all(bytes([1, 0 if is_right else 1]))
        return is_right

    async def _request(self, reader: _Reader) -> tuple[str, int]:
        *_, kind = await reader.read(4)
        if kind == 3:
            host = (await reader.read((await reader.read(1))[0])).decode()
        else:
            family, length = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
            host = socket.inet_ntop(family, await reader.read(length))
        return host, struct.unpack("!H", await reader.read(2))[0]

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            async for part in source:
                await sink.send_all(part)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


class _Reader:
    """Reads what was sent in as many bytes as it was meant."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await self.stream.receive_some(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data
