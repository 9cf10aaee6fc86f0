"""Addresses of mirrors, and which redirects are followed. Pure."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote, unquote, urljoin, urlsplit

# Mirror networks redirect two or three times; more is a loop or a trap.
MAX_REDIRECTS: Final = 10

# Longer ones are attacks on our memory; signed CDN addresses stay below 4 KiB.
MAX_URL_LENGTH: Final = 8192

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# Scheme, host and port: what credentials and connections are for.
Origin = tuple[str, str, int]
# Name and value.
Header = tuple[str, bytes]


class AddressError(ValueError):
    """The address cannot be used; the text says why, for a person."""


@dataclass(frozen=True, slots=True)
class Address:
    """An http or https address, taken apart. ``target`` is what the request line carries.

    ``url`` is without a login, which is in ``authorization``; ``headers`` are sent to it
    beside those of every request.
    """

    url: str
    scheme: str
    host: str
    port: int
    target: str
    authorization: str | None = None
    headers: tuple[Header, ...] = ()

    @property
    def origin(self) -> Origin:
        """What a connection is for."""
        return self.scheme, self.host, self.port

    def with_headers(self, headers: tuple[Header, ...]) -> Address:
        """The same, with what its origin is sent."""
        return self if headers == self.headers else replace(self, headers=headers)

    def merged(self, standard: Sequence[Header]) -> list[Header]:
        """All headers of a request: *standard*, and over them those of this address."""
        own = {name.lower(): (name, value) for name, value in self.headers}
        if self.authorization is not None:
            login = self.authorization.encode("ascii")
            own.setdefault("authorization", ("Authorization", login))
        return [header for header in standard if header[0].lower() not in own] + [*own.values()]

    @property
    def host_header(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises :class:`AddressError`."""
        if len(url) > MAX_URL_LENGTH or re.search(r"[\x00-\x20\x7f]", url):
            raise AddressError("the address is too long or has control characters")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise AddressError(f"the address is malformed: {error}") from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise AddressError(f"only http and https are fetched, not {parts.scheme or 'nothing'}:")
        if not host:
            raise AddressError("the address has no host")
        try:
            host = host if host.isascii() else host.encode("idna").decode("ascii")
        except UnicodeError:
            raise AddressError("the host name is malformed") from None
        # What is escaped stays as it is; what a request line cannot carry is escaped.
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]")
        authorization = None
        if parts.username is not None:
            url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + b64encode(pair.encode()).decode("ascii")
        real_port = port if port is not None else _DEFAULT_PORTS[parts.scheme]
        return cls(url, parts.scheme, host, real_port, target, authorization)


# What libraries say can hold a kilobyte of what the server sent.
_MAX_MESSAGE: Final = 120


# As OpenSSL and the ssl module put it, with the line in its source at the end.
_UNTRUSTED: Final = re.compile(
    r"CERTIFICATE_VERIFY_FAILED\] certificate verify failed: ([^()]{1,200})"
)


def distrust_of(text: str) -> str | None:
    """What to say where *text* is OpenSSL's of a certificate that is not trusted, else None."""
    found = _UNTRUSTED.search(text)
    if found is None:
        return None
    return (
        f"its certificate is not trusted ({found[1].strip()}); if it should be, trust its "
        "authority with --ca-file FILE, or for the whole host with: ddfs ca add FILE"
    )


def in_one_line(error: Exception) -> str:
    """What a library says about a failure, or what it has it from; short and printable."""
    speaker: BaseException | None = error
    while speaker is not None and not str(speaker).strip():
        speaker = speaker.__cause__ or speaker.__context__
    text = " ".join(str(speaker or type(error).__name__).split())
    if (distrust := distrust_of(text)) is not None:
        return distrust
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= _MAX_MESSAGE else plain[:_MAX_MESSAGE] + "…"


def redirected(base: Address, location: str, *, may_leave_tls: bool = False) -> Address:
    """Where a redirect from *base* leads. Raises :class:`AddressError`.

    From https to http never, unless a hash that came over a trusted way says what has to
    come (*may_leave_tls*): what a trusted server says would travel unprotected. Other
    schemes are refused, so a server cannot make us read local files. A login stays with its
    origin.
    """
    try:
        joined = urljoin(base.url, location.strip())
    except ValueError as error:
        raise AddressError(f"it redirects to a malformed address: {in_one_line(error)}") from None
    target = Address.parse(joined)
    if base.scheme == "https" and target.scheme == "http" and not may_leave_tls:
        raise AddressError(f"it redirects from https to {target.url}, which is refused")
    if target.authorization is None and target.origin == base.origin:
        target = replace(target, authorization=base.authorization)
    return target
