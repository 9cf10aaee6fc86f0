"""Addresses, priorities, locations, and the order of mirrors.

The order is by priority, then the preferred location first, then as in the document.
Priority stands above location because it is what the publisher says (MirrorBrain and
MirrorCache already rank by the asking client's country, each mirror with a priority of its
own); the location decides among equals.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from ddfs import errors
from ddfs.metalink import limits
from ddfs.model import LOWEST_PRIORITY, Mirror

USABLE_SCHEMES: Final = frozenset({"http", "https"})

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_PORT: Final = 65_535

# XML's white space (XML 1.0 section 2.3), which documents put around values.
XML_BLANKS: Final = " \t\r\n"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NUMBER = re.compile(r"-?[0-9]{1,18}")

# Labels of letters, digits, "-" and "_" (the last occurs in real host names).
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_MAX_HOST_LENGTH: Final = 253

# What RFC 3986 section 3.3 lets stand in a path, "%" included since escapes are kept.
_PATH_SAFE: Final = "/%:@!$&'()*+,;=~"
_QUERY_SAFE: Final = _PATH_SAFE + "?"


def scheme_of(address: str) -> str | None:
    """The scheme in lower case, None for a relative reference."""
    match = _SCHEME.match(address)
    return match[1].lower() if match else None


def to_uri(address: str, base_url: str | None = None) -> str:
    """*address*, an IRI or relative to *base_url*, as an absolute http or https URI.

    Host and scheme in lower case, no fragment, no default port: the same address is the
    same text. IRIs are mapped by RFC 3987 section 3.1 (IDNA for the host, UTF-8 in percent
    escapes for the rest). A user name or password is refused, as RFC 9110 section 4.2.4
    advises for addresses from elsewhere; ours are shown to everybody who may see a status.
    Raises :class:`errors.InvalidValueError`.
    """
    address = address.strip(XML_BLANKS)
    try:
        return _to_uri(address, base_url)
    except ValueError as error:
        raise errors.InvalidValueError(f"not a usable address: {error}") from None


def _to_uri(address: str, base_url: str | None) -> str:
    if not address or len(address) > limits.MAX_TEXT_LENGTH:
        raise ValueError(f"it is empty or longer than {limits.MAX_TEXT_LENGTH} characters")
    # urlsplit() drops tabs and line ends silently: what is checked would not be what is used.
    if _CONTROL.search(address):
        raise ValueError("it has control characters")
    parts = urlsplit(urljoin(base_url, address) if base_url else address)
    if not parts.scheme:
        raise ValueError("it is relative, and nothing says to what")
    if parts.scheme not in USABLE_SCHEMES:
        raise ValueError(f"{parts.scheme} is neither http nor https")
    path = quote(_STRAY_PERCENT.sub("%25", parts.path), safe=_PATH_SAFE)
    query = quote(_STRAY_PERCENT.sub("%25", parts.query), safe=_QUERY_SAFE)
    return urlunsplit((parts.scheme, _authority(parts), path or "/", query, ""))


def _authority(parts: SplitResult) -> str:
    if "@" in parts.netloc:
        raise ValueError("it has a user name or password")
    port = parts.port
    if port is not None and not 0 < port <= _MAX_PORT:
        raise ValueError("its port is out of range")
    name = parts.hostname or ""
    # A zone ("%eth0") means something on one host only.
    if "%" in name:
        raise ValueError("it has no valid host name")
    host = f"[{ipaddress.IPv6Address(name)}]" if parts.netloc.startswith("[") else _host(name)
    return host if port in (None, _DEFAULT_PORTS[parts.scheme]) else f"{host}:{port}"


def _host(name: str) -> str:
    # The codec takes time that grows with the square of the length.
    if len(name) > _MAX_HOST_LENGTH:
        raise ValueError("its host name is too long")
    ascii_name = name if name.isascii() else name.encode("idna").decode("ascii").lower()
    if _HOST.fullmatch(ascii_name) is None:
        raise ValueError("it has no valid host name")
    return ascii_name


def priority_from(text: str | None) -> int:
    """RFC 5854 section 4.2.16; what is absent, no number or out of range is the lowest."""
    number = _integer(text)
    return number if number is not None and 1 <= number <= LOWEST_PRIORITY else LOWEST_PRIORITY


def priority_from_preference(text: str | None) -> int:
    """Version 3's preference (100 best, 1 least) on version 4's scale.

    MirrorCache counts down from 100 and past 0 when it has many mirrors; those keep their
    order here. Absent means least.
    """
    number = _integer(text)
    if number is None:
        return LOWEST_PRIORITY
    return min(max(101 - number, 1), LOWEST_PRIORITY)


def location_from(text: str | None) -> str | None:
    """A lower-case two-letter code; anything else is no location."""
    code = (text or "").strip(XML_BLANKS).lower()
    return code if len(code) == 2 and code.isascii() and code.isalpha() else None


def connections_from(text: str | None) -> int | None:
    """A positive number of connections; anything else is no limit."""
    number = _integer(text)
    return number if number is not None and number > 0 else None


def in_order(mirrors: Iterable[Mirror], location: str | None) -> tuple[Mirror, ...]:
    """*mirrors* best first, each address once, at its best place.

    A preferred location outranks the document's priorities: mirror networks give every
    mirror a priority of its own, guessed from the asker's address, and would leave an
    operator's word no say.
    """
    preferred = location_from(location)
    by_rank = sorted(
        mirrors, key=lambda m: (preferred is not None and m.location != preferred, m.priority)
    )
    first: dict[str, Mirror] = {}
    for mirror in by_rank:
        first.setdefault(mirror.url, mirror)
    return tuple(first.values())


def _integer(text: str | None) -> int | None:
    stripped = (text or "").strip(XML_BLANKS)
    return int(stripped) if _NUMBER.fullmatch(stripped) else None
