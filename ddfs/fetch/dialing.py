"""Connecting to an address that somebody named: looked up, checked, and connected to as it is."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from typing import Final

import trio

from ddfs.fetch.address import Address, AddressError
from ddfs.fetch.networks import Network, network_of, refusal

# RFC 8305 section 5: what the next address waits for the one before it.
_STAGGER_SECONDS: Final = 0.25

# A name with more addresses than this is an attack on our time.
_MAX_ADDRESSES: Final = 16


class RefusedAddressError(AddressError):
    """Every address of a host is in a network that it must not be named in."""


def peer_of(sock: socket.socket | trio.socket.SocketType) -> str:
    """The address of the other end."""
    return str(sock.getpeername()[0])


async def permitted_addresses(
    address: Address, named_from: str, allowed: Sequence[Network]
) -> list[str]:
    """The host's addresses, as the resolver has them now, without those that are refused.

    Raises :class:`RefusedAddressError` when none is left, and ``OSError``.
    """
    try:
        found = [str(ipaddress.ip_address(address.host))]
    except ValueError:
        infos = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        found = list(dict.fromkeys(str(info[4][0]) for info in infos))[:_MAX_ADDRESSES]
    reasons = [refusal(text, named_from, allowed) for text in found]
    permitted = [text for text, reason in zip(found, reasons, strict=True) if reason is None]
    if not permitted:
        raise RefusedAddressError(next(filter(None, reasons), "the host has no address"))
    return permitted


async def dial(
    address: Address, named_from: str | None, allowed: Sequence[Network]
) -> tuple[trio.SocketStream, str]:
    """A connection to *address*, and the address of its other end.

    Where somebody else than the operator named it, only to what
    :func:`ddfs.fetch.networks.refusal` permits: the very addresses that were checked are
    connected to. Raises :class:`RefusedAddressError`, and ``OSError``.
    """
    if named_from is None:
        stream = await trio.open_tcp_stream(address.host, address.port)
        return stream, peer_of(stream.socket)
    candidates = await permitted_addresses(address, named_from, allowed)
    stream = await _first_of(candidates, address.port)
    try:
        peer = peer_of(stream.socket)
        reason = refusal(peer, named_from, allowed)
    except OSError:
        stream.socket.close()
        raise
    if reason is not None:
        stream.socket.close()
        raise RefusedAddressError(reason)
    return stream, peer


async def _first_of(candidates: Sequence[str], port: int) -> trio.SocketStream:
    """The first that answers; each gets a head start over the next (RFC 8305)."""
    winners: list[trio.SocketStream] = []
    failures: list[OSError] = []

    async def attempt(candidate: str, failed: trio.Event, scope: trio.CancelScope) -> None:
        try:
            stream = await trio.open_tcp_stream(candidate, port)
        except OSError as error:
            failures.append(error)
            failed.set()
            return
        if winners:
            stream.socket.close()
        winners.append(stream)
        scope.cancel()

    if len(candidates) == 1:
        return await trio.open_tcp_stream(candidates[0], port)
    try:
        async with trio.open_nursery() as nursery:
            for candidate in candidates:
                failed = trio.Event()
                nursery.start_soon(attempt, candidate, failed, nursery.cancel_scope)
                with trio.move_on_after(_STAGGER_SECONDS):
                    await failed.wait()
    except trio.Cancelled:
        for stream in winners:
            stream.socket.close()
        raise
    if winners:
        return winners[0]
    raise failures[0]


def network_of_peer(peer: str | None) -> str:
    """The network of the other end; public where a proxy hides it."""
    return network_of(peer) if peer is not None else ""


def describe_connect(error: OSError) -> str:
    """What went wrong on the host's addresses; trio keeps the reasons below a summary."""
    causes = getattr(error.__cause__, "exceptions", (error.__cause__ or error,))
    texts = {_reason(each) for each in causes}
    return "cannot be connected to: " + ", ".join(sorted(texts))


def _reason(error: BaseException) -> str:
    # The resolver's error numbers are its own, and negative.
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return getattr(error, "strerror", None) or str(error)
