"""Documents, sizes and small ranges over httpx: metalinks, HEAD, proxies, redirects.

httpx is loaded at the first request, because it costs a tenth of a second.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from ddfs import __version__, errors
from ddfs.fetch.access import PLAIN, Terms
from ddfs.fetch.address import MAX_REDIRECTS, Address, AddressError, in_one_line, redirected
from ddfs.fetch.connection import parse_content_range
from ddfs.fetch.dialing import describe_connect, network_of_peer, permitted_addresses
from ddfs.fetch.encoding import IDENTITY, Body
from ddfs.fetch.networks import Network
from ddfs.fetch.proxies import proxy_of, require_usable, unreachable, uses_proxy
from ddfs.fetch.trust import Trust
from ddfs.model import ByteRange, KiB, MiB
from ddfs.versions import Validator, Visit

if TYPE_CHECKING:
    import httpx

# What read_range() is for: heads, and the pieces under them.
MAX_SMALL_RANGE: Final = 8 * MiB

# Silence between two parts of a document, and the time for all of one: a document that
# drips must not hold a registration for ever.
_SILENCE_SECONDS: Final = 20.0
_TOTAL_SECONDS: Final = 120.0
_CLOSE_SECONDS: Final = 2.0
# To connect; to one of several addresses of a host, before the next is tried.
_CONNECT_SECONDS: Final = 10.0
_NEXT_ADDRESS_SECONDS: Final = 2.0

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_READ_BYTES: Final = 64 * KiB


@dataclass(frozen=True)
class FetchedDocument:
    """A document that was read whole.

    ``url`` is where it came from after redirects; header names are in lower case.
    """

    data: bytes
    url: str
    content_type: str | None
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What one server on the way to a file said. Header names are in lower case.

    ``is_whole``: its body is, or would have been read as, the whole file.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    is_whole: bool


@dataclass(frozen=True)
class Look:
    """What servers say of a file without sending it: its size, None where nobody says it."""

    size: int | None
    answers: tuple[Answer, ...]

    @property
    def validator(self) -> str:
        """What changes when the file does: Last-Modified, or else the entity tag; or nothing.

        The former is the same on every server behind one name, the latter often is not.
        """
        headers = self.answers[-1].headers if self.answers else {}
        return headers.get("last-modified") or headers.get("etag") or ""


@dataclass(frozen=True)
class Reply:
    """A response whose body is not read yet, and whose it is, after redirects."""

    response: httpx.Response
    address: Address
    network: str


class Documents:
    """Small requests. Each is independent; any number may run at once.

    ``allow_networks`` are those that a remote document may name.
    """

    def __init__(self, trust: Trust, allow_networks: Sequence[Network] = ()) -> None:
        self._trust = trust
        self._allow_networks = allow_networks

    async def read_document(
        self, url: str, *, max_bytes: int, terms: Terms = PLAIN
    ) -> FetchedDocument:
        """See :meth:`transport.Transport.read_document`."""
        # What a document says is believed: it never comes unprotected from a protected place.
        terms = replace(terms, may_leave_tls=False)
        async with self._translated(url):
            async with self.respond("GET", url, IDENTITY, terms) as reply:
                response = reply.response
                _expect(response, url, 200)
                headers = {name.lower(): value for name, value in response.headers.items()}
                body = Body(url, headers.get("content-encoding", ""), max_bytes)
                async with body_of(response, response.aiter_raw(_READ_BYTES)) as parts:
                    async for part in parts:
                        body.take(part)
                return FetchedDocument(
                    body.whole(), reply.address.url, headers.get("content-type"), headers
                )

    async def size_of(self, url: str, terms: Terms = PLAIN) -> int:
        """See :meth:`transport.Transport.size_of`."""
        look = await self.look_at(url, terms)
        if look.size is None:
            encoding = look.answers[-1].headers.get("content-encoding", "")
            if encoding not in ("", "identity"):
                raise errors.MirrorError(url, f"sends {encoding[:40]!r}, not the plain file")
            raise errors.MirrorError(url, "does not say how large the file is")
        return look.size

    async def look_at(self, url: str, terms: Terms = PLAIN) -> Look:
        """See :meth:`transport.Transport.look_at`."""
        answers: list[Answer] = []
        async with self._translated(url):
            async with self.respond("HEAD", url, IDENTITY, terms, answers) as reply:
                response = reply.response
                size = _stated_length(response) if response.status_code == 200 else None
                if size is not None:
                    return Look(size, tuple(answers))
            # Some servers refuse HEAD, or have no length for it; a part names the total.
            answers.clear()
            ranged = IDENTITY | {"Range": "bytes=0-0"}
            async with self.respond("GET", url, ranged, terms, answers) as reply:
                response = reply.response
                if response.status_code == 206:
                    parsed = parse_content_range(response.headers.get("content-range", ""))
                    size = parsed[2] if parsed is not None else None
                elif response.status_code == 416:
                    # An empty file has no byte 0 (RFC 9110 section 14.4: "bytes */0").
                    if response.headers.get("content-range", "").strip() == "bytes */0":
                        size = 0
                else:
                    _expect(response, url, 200)
                    size = _stated_length(response)
                return Look(size, tuple(answers))

    async def read_range(
        self, url: str, wanted: ByteRange, *, size: int | None, terms: Terms = PLAIN
    ) -> bytes:
        """See :meth:`transport.Transport.read_range`."""
        if len(wanted) > MAX_SMALL_RANGE:
            raise ValueError(f"{len(wanted)} bytes are no small range")
        headers = IDENTITY | {"Range": f"bytes={wanted.start}-{wanted.end - 1}"}
        async with self._translated(url):
            async with self.respond("GET", url, headers, terms) as reply:
                response = reply.response
                skip = _check_range(response, url, wanted, size)
                data = bytearray()
                async with body_of(response, response.aiter_raw(_READ_BYTES)) as parts:
                    async for part in parts:
                        data += part
                        if len(data) > skip + len(wanted):
                            break
                if response.status_code == 206 and len(data) > len(wanted):
                    raise errors.MirrorError(url, "sends more than it was asked for")
                if len(data) < skip + len(wanted):
                    raise errors.MirrorError(url, "sent less than it was asked for")
                return bytes(data[skip : skip + len(wanted)])

    async def revisit(self, before: Validator, terms: Terms = PLAIN) -> Visit:
        """See :meth:`inquiry.Inquiry.revisit`."""
        url = before.url
        headers = dict(IDENTITY)
        if before.etag:
            headers["If-None-Match"] = before.etag
        if before.last_modified:
            headers["If-Modified-Since"] = before.last_modified
        async with self._translated(url):
            async with self.respond("HEAD", url, headers, terms) as reply:
                if reply.response.status_code in (200, 304):
                    return _visit_of(reply.response, url)
            # Some servers refuse HEAD. Of the body no more is read than came with the head.
            async with self.respond("GET", url, headers, terms) as reply:
                if reply.response.status_code != 304:
                    _expect(reply.response, url, 200)
                return _visit_of(reply.response, url)

    @asynccontextmanager
    async def respond(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        terms: Terms = PLAIN,
        answers: list[Answer] | None = None,
    ) -> AsyncIterator[Reply]:
        """The reply to a request, with redirects followed; its body is not read yet.

        Who redirects to another origin names it: from then on the address is judged by the
        network that he was reached in. *answers* gets what each server on the way said, the
        last one too.
        """
        address = _parse(url, url)
        seen: set[str] = set()
        while True:
            if address.url in seen or len(seen) > MAX_REDIRECTS:
                raise errors.MirrorError(url, "redirects in a circle, or too often")
            seen.add(address.url)
            try:
                async with self.exchange(method, address, headers, terms) as response:
                    network = _network_of(response, address)
                    if answers is not None:
                        answers.append(_answer(method, address, response))
                    location = response.headers.get("location")
                    if response.status_code not in _REDIRECTS or not location:
                        if terms.heard is not None:
                            terms.heard(network)
                        yield Reply(response, address, network)
                        return
                target = redirected(address, location, may_leave_tls=terms.may_leave_tls)
            except AddressError as error:
                raise errors.MirrorError(url, str(error)) from None
            except errors.InvalidValueError as error:
                raise errors.MirrorError(url, str(error)) from None
            if target.origin != address.origin:
                terms = replace(terms, named_from=network)
            address = target

    @asynccontextmanager
    async def exchange(
        self, method: str, address: Address, headers: Mapping[str, str], terms: Terms
    ) -> AsyncIterator[httpx.Response]:
        """One request and its response, without redirects; raises what httpx raises.

        Also :class:`AddressError` where the address is refused. Through a proxy, the proxy
        looks names up and decides what it connects to.
        """
        import httpx  # a tenth of a second, spent when the first document is read

        proxy = proxy_of(address)
        if proxy is not None:
            require_usable(proxy)
        needs_tls = address.scheme == "https" or proxy is not None
        # Each request has a connection of its own: what a server sends beyond one answer
        # would be taken for the next. So it has a client of its own, too, which keeps no
        # cookie, and takes 0.1 ms.
        async with httpx.AsyncClient(
            verify=await self._trust.context(terms.grants, address) if needs_tls else False,
            timeout=httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS),
            follow_redirects=False,
            # It is decided once, here: what goes to no proxy is checked.
            trust_env=False,
            proxy=proxy,
        ) as client:
            sent = _headers_of(terms.grants.to(address), headers)
            response = None
            if terms.named_from is not None and proxy is None:
                response = await self._send_checked(client, method, address, sent, terms)
            else:
                request = client.build_request(method, address.url, headers=sent)
                response = await _send(client, request, proxy)
            try:
                yield response
            finally:
                with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                    await response.aclose()

    async def _send_checked(
        self,
        client: httpx.AsyncClient,
        method: str,
        address: Address,
        headers: list[tuple[bytes, bytes]],
        terms: Terms,
    ) -> httpx.Response:
        """As :meth:`exchange`, to an address that was looked up and checked before."""
        import httpx

        assert terms.named_from is not None
        try:
            permitted = await permitted_addresses(address, terms.named_from, self._allow_networks)
        except OSError as error:
            raise httpx.ConnectError(in_one_line(error)) from error
        # The certificate has to be the name's; the Host field says the name already.
        extensions = {"sni_hostname": address.host}
        for number, candidate in enumerate(permitted, 1):
            host = f"[{candidate}]" if ":" in candidate else candidate
            url = f"{address.scheme}://{host}:{address.port}{address.target}"
            last = number == len(permitted)
            patience = _CONNECT_SECONDS if last else _NEXT_ADDRESS_SECONDS
            timeout = httpx.Timeout(_SILENCE_SECONDS, connect=patience)
            request = client.build_request(
                method, url, headers=headers, extensions=extensions, timeout=timeout
            )
            try:
                return await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if last:
                    raise
        raise RuntimeError("no address, and no reason why")

    @asynccontextmanager
    async def _translated(self, url: str) -> AsyncIterator[None]:
        """Turn what httpx raises, and a request that takes for ever, into MirrorError."""
        import httpx

        try:
            with trio.fail_after(_TOTAL_SECONDS):
                yield
        except httpx.InvalidURL as error:
            raise errors.MirrorError(url, f"the address is malformed: {error}") from None
        except httpx.TimeoutException:
            raise errors.MirrorError(url, "did not answer in time") from None
        except trio.TooSlowError:
            raise errors.MirrorError(url, f"took more than {_TOTAL_SECONDS:.0f} s") from None
        except httpx.HTTPError as error:
            raise errors.MirrorError(url, _what_failed(error)) from error


@asynccontextmanager
async def body_of(
    response: httpx.Response, parts: AsyncIterator[bytes]
) -> AsyncIterator[AsyncIterator[bytes]]:
    """*parts* of *response*, which may be left before they end.

    httpx nests asynchronous generators that do not close each other: left alone they are
    closed by the garbage collector, with a warning for each. Closed connection first, they
    run to their end by themselves.
    """
    try:
        yield parts
    finally:
        with trio.move_on_after(_CLOSE_SECONDS, shield=True), suppress(Exception):
            await response.aclose()
            async for _ in parts:
                pass


async def _send(
    client: httpx.AsyncClient, request: httpx.Request, proxy: str | None
) -> httpx.Response:
    import httpx

    try:
        return await client.send(request, stream=True)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        message = unreachable(proxy, error) if proxy is not None else None
        if message is None:
            raise
        raise httpx.ProxyError(message) from error


def _headers_of(address: Address, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    standard = [
        ("Host", address.host_header.encode("ascii")),
        ("User-Agent", f"ddfs/{__version__}".encode()),
        ("Accept", b"*/*"),
        *((name, value.encode("ascii")) for name, value in headers.items()),
    ]
    return [(name.encode("ascii"), value) for name, value in address.merged(standard)]


def _what_failed(error: httpx.HTTPError) -> str:
    """As :func:`describe_connect` where no connection was made; TLS says more than that."""
    import httpx

    cause: BaseException | None = error if isinstance(error, httpx.ConnectError) else None
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is None or isinstance(cause, ssl.SSLError):
        return in_one_line(error)
    return describe_connect(cause)


def _network_of(response: httpx.Response, address: Address) -> str:
    """Where the other end is; that of a proxy says nothing."""
    stream = response.extensions.get("network_stream")
    if stream is None or uses_proxy(address):
        return network_of_peer(None)
    peer = stream.get_extra_info("server_addr")
    return network_of_peer(peer[0] if peer else None)


def _parse(text: str, url: str) -> Address:
    try:
        return Address.parse(text)
    except AddressError as error:
        raise errors.MirrorError(url, str(error)) from None


def _answer(method: str, address: Address, response: httpx.Response) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    is_whole = method == "GET" and response.status_code == 200
    return Answer(address.url, response.status_code, headers, is_whole)


def _stated_length(response: httpx.Response) -> int | None:
    """The size of the file in a response to a request for all of it."""
    length = response.headers.get("content-length", "")
    encoded = response.headers.get("content-encoding", "identity") != "identity"
    return int(length[:19]) if length.isdecimal() and not encoded else None


def _visit_of(response: httpx.Response, url: str) -> Visit:
    not_modified = response.status_code == 304
    # RFC 9110 section 15.4.5: a 304 need not say anything of the body.
    now = Validator(
        url,
        response.headers.get("etag"),
        response.headers.get("last-modified"),
        None if not_modified else _stated_length(response),
    )
    return Visit(now, not_modified)


def _expect(response: httpx.Response, url: str, status: int) -> None:
    if response.status_code != status:
        # What is asked here is mostly a source, which credentials may open.
        login = ": it wants a login (--header, --token-file, --netrc-file)"
        hint = login if response.status_code == 401 else ""
        raise errors.MirrorError(url, f"refuses (HTTP {response.status_code}){hint}")


def _check_range(response: httpx.Response, url: str, wanted: ByteRange, size: int | None) -> int:
    """How many bytes of the body to pass over. Raises MirrorError."""
    encoding = response.headers.get("content-encoding", "identity")
    if response.status_code not in (200, 206):
        _expect(response, url, 206)
    if encoding not in ("", "identity"):
        raise errors.MirrorError(url, f"sends {encoding!r} where the plain file was asked for")
    if response.status_code == 200:
        length = response.headers.get("content-length", "")
        if size is not None and length.isdecimal() and int(length[:19]) != size:
            raise errors.MirrorError(url, f"has {length} bytes, not {size}")
        if wanted.end > MAX_SMALL_RANGE:
            raise errors.MirrorError(url, "ignores ranges")
        return wanted.start
    parsed = parse_content_range(response.headers.get("content-range", ""))
    if parsed is None:
        raise errors.MirrorError(url, "sends a part without saying which")
    start, end, total = parsed
    if size is not None and total is not None and total != size:
        raise errors.MirrorError(url, f"has {total} bytes, not {size}")
    if (start, end) != (wanted.start, wanted.end - 1):
        raise errors.MirrorError(
            url, f"sends bytes {start} to {end}, not {wanted.start} to {wanted.end - 1}"
        )
    return 0
