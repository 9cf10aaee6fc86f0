"""Bytes from other hosts: one client for documents, raw connections for the bulk.

Documents, sizes and small ranges go through httpx. The bulk goes over HTTP/1.1
connections of our own, each served by a worker thread while it is busy: measured on
loopback with SHA-256, httpx brings 212 MiB/s, a thread with ``recv_into`` 596. Behind a
proxy the bulk goes through httpx as well.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.fetch.access import PLAIN, Grants, Terms, grants_of
from ddfs.fetch.address import MAX_REDIRECTS, Address, AddressError, redirected
from ddfs.fetch.connection import Connection
from ddfs.fetch.dialing import describe_connect, dial, network_of_peer, peer_of
from ddfs.fetch.documents import Documents, FetchedDocument, Look
from ddfs.fetch.elsewhere import Elsewhere
from ddfs.fetch.headstart import MAX_AHEAD_BYTES, Headstart
from ddfs.fetch.hot import HotRoom
from ddfs.fetch.inquiry import Inquiry
from ddfs.fetch.mirrors import Failure, FailureKind
from ddfs.fetch.networks import PUBLIC, parse_networks, refusal
from ddfs.fetch.pacing import Pace, Pacer
from ddfs.fetch.proxies import uses_proxy
from ddfs.fetch.segment import (
    BUFFER_BYTES,
    Broken,
    Done,
    Outcome,
    Redirected,
    Segment,
)
from ddfs.fetch.trust import Trust
from ddfs.fetch.turns import CONNECTIONS_PER_HOST, Turns
from ddfs.model import ByteRange

__all__ = ["FetchedDocument", "Route", "Transport"]

# DNS, TCP and happy eyeballs together.
CONNECT_SECONDS: Final = 10.0

# Threads that receive, over all fetches of this process. A thread is used while a request
# is under way; more wait for their turn.
MAX_BULK_THREADS: Final = 256

# Idle connections kept, in all, and for how long: servers close them after 15 to 75 s.
MAX_IDLE: Final = 64
MAX_IDLE_SECONDS: Final = 15.0

# Threads are counted by Transport before they are asked for.
_UNLIMITED: Final = trio.CapacityLimiter(math.inf)

# Files with secrets are read in a thread: they may be anywhere.
_SECRETS: Final = trio.CapacityLimiter(2)

# A connection that breaks again and again after some bytes is a failure at last.
MAX_BREAKS: Final = 64


@dataclass(slots=True)
class Route:
    """The way to one mirror: its address, and where that redirected to last time.

    ``network`` is that of the other end of its last connection, ``named_from`` that of who
    redirected to ``resolved``, where that is another origin.
    """

    url: str
    terms: Terms = PLAIN
    resolved: Address | None = None
    hops: list[str] = field(default_factory=list)
    network: str = PUBLIC
    named_from: str | None = None

    def current(self) -> tuple[Address, Terms]:
        """What is to be asked now, and on what terms. Raises :class:`AddressError`."""
        if self.resolved is None:
            return Address.parse(self.url), self.terms
        return self.resolved, replace(self.terms, named_from=self.named_from)

    def follow(self, base: Address, location: str) -> None:
        """Ask there from now on; raises :class:`AddressError`."""
        target = redirected(base, location, may_leave_tls=self.terms.may_leave_tls)
        self.hops.append(base.url)
        if target.url in self.hops or len(self.hops) > MAX_REDIRECTS:
            raise AddressError("it redirects in a circle, or too often")
        if target.origin != base.origin:
            # Who redirects elsewhere names it.
            self.named_from = self.network
        elif self.resolved is None:
            self.named_from = self.terms.named_from
        self.resolved = target

    def forget(self) -> None:
        """Begin with the mirror itself again."""
        self.resolved = None
        self.hops.clear()


class Transport:
    """The one owner of connections; an async context manager, one per process.

    ``pacer`` limits the bandwidth of the bulk, ``turns`` the connections to one server;
    both may be changed at any time. ``hot_room`` is what fetches may keep pieces in.
    """

    def __init__(
        self,
        headstart: Headstart | None = None,
        *,
        ca_directory: Path | None = None,
        allow_networks: Sequence[str] = (),
    ) -> None:
        """*headstart* has requests that are under way; its owner closes it. *ca_directory* has
        certificates that are trusted beside the host's, and *allow_networks* (CIDR) are those
        that a remote document may name.
        """
        self._headstart = headstart
        self.pacer = Pacer()
        self.turns = Turns(CONNECTIONS_PER_HOST)
        self._trust = Trust(ca_directory)
        self._allow_networks = parse_networks(allow_networks)
        self.hot_room = HotRoom()
        self.elsewhere = Elsewhere()
        self._documents = Documents(self._trust, self._allow_networks)
        self._idle: list[tuple[float, Connection]] = []
        self._buffers: list[bytearray] = []
        self._threads = trio.CapacityLimiter(MAX_BULK_THREADS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _, connection in self._idle:
            connection.close()
        self._idle.clear()
        self.elsewhere.close()

    # -- what the operator gives ------------------------------------------------------

    async def grants(self, declarations: Sequence[Declaration]) -> Grants:
        """What *declarations* give to the requests of a fetch (:mod:`ddfs.fetch.access`).

        Raises :class:`errors.InvalidValueError` for a file that cannot be used.
        """
        if any(declaration.access for declaration in declarations):
            read = partial(grants_of, declarations)
            grants = await trio.to_thread.run_sync(read, limiter=_SECRETS)
            await self._trust.check(grants)
            return grants
        return grants_of(declarations)

    async def inquiry(self, declaration: Declaration) -> Inquiry:
        """What asks the source of *declaration*, with what is declared about its access.

        Raises :class:`errors.InvalidValueError` for a file that cannot be used.
        """
        return Inquiry(
            self._documents, self.elsewhere, declaration, await self.grants([declaration])
        )

    # -- small things ---------------------------------------------------------------

    async def read_document(self, url: str, *, max_bytes: int) -> FetchedDocument:
        """The document at *url*, decoded, redirects followed (10 at most, never to http).

        Raises :class:`errors.MirrorError`, and :class:`errors.DocumentError` when it has
        more than *max_bytes*.
        """
        if self.elsewhere.has(url):
            data, _ = await self.elsewhere.read_all(url, max_bytes)
            return FetchedDocument(data, url, None, {})
        return await self._documents.read_document(url, max_bytes=max_bytes)

    async def size_of(self, url: str) -> int:
        """How many bytes *url* has: by HEAD, else by asking for its first byte.

        Raises :class:`errors.MirrorError`.
        """
        if self.elsewhere.has(url):
            return await self.elsewhere.size_of(url)
        return await self._documents.size_of(url)

    async def look_at(self, url: str, grants: Grants | None = None) -> Look:
        """What servers say of *url*, which the operator typed, without sending it.

        Redirects on the way are included; *grants* are with what it is asked.

        Raises :class:`errors.MirrorError` where it is refused; a size that nobody says is None.
        """
        if self.elsewhere.has(url):
            return await self.elsewhere.look_at(url)
        terms = PLAIN if grants is None else Terms(grants)
        return await self._documents.look_at(url, terms)

    async def read_range(self, url: str, wanted: ByteRange, *, size: int | None) -> bytes:
        """Exactly the bytes *wanted* (8 MiB at most) of *url*, whose size has to be *size*.

        Raises :class:`errors.MirrorError`.
        """
        if self.elsewhere.has(url):
            return await self.elsewhere.read_range(url, wanted, size)
        return await self._documents.read_range(url, wanted, size=size)

    # -- the bulk -------------------------------------------------------------------

    def pace(self) -> Pace:
        """A share of the bandwidth, for one fetch and its segments."""
        return Pace(self.pacer)

    async def fetch(self, segment: Segment, route: Route) -> Failure | None:
        """Fill *segment* from *route*; None when it is done or was aborted.

        Raises :class:`errors.StorageError` and :class:`errors.StorageFullError`. Whatever
        the end, also by cancellation: nothing writes into the file any more.
        """
        if self.elsewhere.has(route.url):
            return await self.elsewhere.fetch(segment, route.url)
        breaks = 0
        while not segment.is_done:
            before = segment.position
            try:
                address, terms = route.current()
                outcome = await self._attempt(segment, terms.grants.to(address), route, terms)
                if isinstance(outcome, Redirected):
                    route.follow(address, outcome.location)
                    continue
            except (AddressError, errors.InvalidValueError) as error:
                route.forget()
                return Failure(FailureKind.FINAL, str(error))
            if isinstance(outcome, Done):
                route.hops.clear()
                break
            if isinstance(outcome, Broken):
                breaks += 1
                if breaks < MAX_BREAKS:
                    continue
                outcome = Failure(FailureKind.TRANSIENT, outcome.message)
            if route.resolved is not None and segment.position == before and not route.hops:
                # Where it redirected to before may have expired: ask the mirror itself.
                route.resolved = None
                continue
            route.forget()
            return outcome
        return None

    async def _attempt(
        self, segment: Segment, address: Address, route: Route, terms: Terms
    ) -> Outcome:
        async with self.turns.turn(segment, address):
            if segment.is_aborted:
                return Done()
            return await self._exchange(segment, address, route, terms)

    async def _exchange(
        self, segment: Segment, address: Address, route: Route, terms: Terms
    ) -> Outcome:
        if uses_proxy(address):
            from ddfs.fetch.proxied import attempt

            route.network = network_of_peer(None)
            return await attempt(self._documents, segment, address, self._threads, terms)
        tls = None
        if address.scheme == "https":
            tls = await self._trust.context(terms.grants, address)
        connection = self._take_begun(segment, address, terms.named_from)
        connection = connection or self._take_idle(address, tls, terms.named_from)
        if connection is None:
            try:
                with trio.CancelScope() as scope, segment.aborting(scope.cancel):
                    connection = await self._connect(address, tls, terms.named_from)
            except trio.TooSlowError:
                return Failure(
                    FailureKind.TRANSIENT, f"no connection within {CONNECT_SECONDS:.0f} s"
                )
            except OSError as error:
                return Failure(FailureKind.TRANSIENT, describe_connect(error))
        if connection is None:
            return Done()  # aborted while connecting
        route.network = network_of_peer(connection.peer)
        buffer = self._buffers.pop() if self._buffers else bytearray(BUFFER_BYTES)
        try:
            outcome = await self._in_thread(segment, connection, address, buffer)
        except BaseException:
            connection.close()
            raise
        self._buffers.append(buffer)
        if connection.is_reusable and not segment.is_aborted:
            self._idle.append((trio.current_time(), connection))
            while len(self._idle) > MAX_IDLE:
                self._idle.pop(0)[1].close()
        else:
            connection.close()
        return outcome

    async def _in_thread(
        self, segment: Segment, connection: Connection, address: Address, buffer: bytearray
    ) -> Outcome:
        """Run the attempt in a thread that a cancellation ends at once."""
        result: list[Outcome] = []
        failure: list[Exception] = []

        async def abort_when_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if not (result or failure):
                    segment.abort()

        async with self._threads, trio.open_nursery() as nursery:
            nursery.start_soon(abort_when_cancelled)
            # The thread writes into the file: it has to end before we do.
            with trio.CancelScope(shield=True):
                try:
                    outcome = await trio.to_thread.run_sync(
                        segment.attempt, connection, address, buffer, limiter=_UNLIMITED
                    )
                    result.append(outcome)
                except errors.HostError as error:
                    failure.append(error)
            nursery.cancel_scope.cancel()
        if failure:
            raise failure[0]
        await trio.lowlevel.checkpoint_if_cancelled()
        return result[0]

    def _take_begun(
        self, segment: Segment, address: Address, named_from: str | None
    ) -> Connection | None:
        # Only the operator's own mirrors are asked so early.
        if self._headstart is None or named_from is not None:
            return None
        begun = self._headstart.take(address, segment.position, segment.limit - 1)
        if begun is None:
            return None
        try:
            peer = peer_of(begun.sock)
        except OSError:  # it is gone already
            begun.sock.close()
            return None
        connection = Connection(address, begun.sock, peer)
        connection.take_over(begun.request, begun.received)
        is_measured = len(begun.received) < MAX_AHEAD_BYTES
        brought = len(begun.received) if is_measured else 0
        segment.begun = (begun.waited, brought, begun.seconds if is_measured else 0.0)
        return connection

    def _take_idle(
        self, address: Address, tls: ssl.SSLContext | None, named_from: str | None
    ) -> Connection | None:
        """One to the same origin, that trusts and shows the same, and that may be used."""
        now = trio.current_time()
        fresh: list[tuple[float, Connection]] = []
        found: Connection | None = None
        for since, connection in self._idle:
            if now - since > MAX_IDLE_SECONDS or not connection.is_alive():
                connection.close()
            elif (
                found is None
                and connection.address.origin == address.origin
                and connection.tls is tls
                and refusal(connection.peer, named_from, self._allow_networks) is None
            ):
                found = connection
            else:
                fresh.append((since, connection))
        self._idle = fresh
        return found

    async def _connect(
        self, address: Address, tls: ssl.SSLContext | None, named_from: str | None
    ) -> Connection:
        """A fresh connection, on whichever of the host's addresses answers first."""
        with trio.fail_after(CONNECT_SECONDS):
            stream, peer = await dial(address, named_from, self._allow_networks)
        sock = socket.socket(fileno=stream.socket.detach())
        sock.setblocking(False)
        if tls is not None:
            sock = tls.wrap_socket(
                sock, server_hostname=address.host, do_handshake_on_connect=False
            )
        return Connection(address, sock, peer)
