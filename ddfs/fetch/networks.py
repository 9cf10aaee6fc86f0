"""Which addresses of the network may be connected to, by whose word. Pure.

A document that somebody else wrote must not make this host talk to what only this host can
reach: its own services, the machines beside it, a cloud's metadata service. What counts is
the address of the other end, not the name that led there, and by whose word it is:

* what the operator typed (a source, the mirrors of a document on this host) may be anywhere;
* a mirror that a remote document or a redirect names may be in the public network, in the
  special network that the one who names it was reached in (the block of the table below:
  10.0.0.0/8 is one, 192.168.0.0/16 another, both loopbacks are one), and in the networks of
  ``network.allow_networks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Network = IPv4Network | IPv6Network

# The word of a public network, or of one that nobody knows.
PUBLIC: Final = ""

# IANA's special-purpose registries (RFC 6890) and the multicast blocks: what is not the
# public network. The first that has an address names its block, so narrow ones stand first.
_SPECIAL: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(text), what)
    for text, what in (
        ("127.0.0.0/8", "loopback"),
        ("::1/128", "loopback"),
        ("10.0.0.0/8", "private"),
        ("172.16.0.0/12", "private"),
        ("192.168.0.0/16", "private"),
        ("fc00::/7", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("169.254.0.0/16", "link-local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("0.0.0.0/8", "unspecified"),
        ("::/128", "unspecified"),
        ("224.0.0.0/4", "multicast"),
        ("ff00::/8", "multicast"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("192.88.99.0/24", "reserved"),
        ("198.18.0.0/15", "benchmarking"),
        ("240.0.0.0/4", "reserved"),
        ("::/96", "reserved"),
        ("64:ff9b:1::/48", "local translation"),
        ("100::/64", "discard"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "reserved"),
    )
)

# Both loopbacks are this host.
_LOOPBACK: Final = "127.0.0.0/8"

# RFC 6052 section 2.1 and RFC 3056 section 2: IPv6 addresses that lead to an IPv4 one.
_NAT64: Final = IPv6Network("64:ff9b::/96")
_6TO4: Final = IPv6Network("2002::/16")


def plain_address(text: str) -> IPv4Address | IPv6Address:
    """The address that *text* leads to: an IPv4 one, where that is embedded in an IPv6 one.

    *text* is as ``getpeername`` and ``getaddrinfo`` have it, with a zone or without. Raises
    ``ValueError`` for what is no address.
    """
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _6TO4:
        return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return address


def network_of(text: str) -> str:
    """The special block that the address *text* lies in, as CIDR; PUBLIC for all others."""
    found = _block_of(plain_address(text))
    return found[0] if found else PUBLIC


def refusal(text: str, named_from: str | None, allowed: Sequence[Network]) -> str | None:
    """Why the address *text* is not connected to; None when it may be.

    *named_from* is the network (:func:`network_of`) of who names it, None for the operator;
    *allowed* is ``network.allow_networks``.
    """
    if named_from is None:
        return None
    address = plain_address(text)
    found = _block_of(address)
    if found is None or (named_from != PUBLIC and found[0] == named_from):
        return None
    if any(address in network for network in allowed if network.version == address.version):
        return None
    return (
        f"{address} is a {found[1]} address, and it was named from elsewhere; if that is meant, "
        f'set allow_networks = ["{found[0]}"] under [network]'
    )


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """From CIDR notation, as the settings have checked it; ``ValueError``."""
    return tuple(ip_network(text) for text in texts)


def _block_of(address: IPv4Address | IPv6Address) -> tuple[str, str] | None:
    for network, what in _SPECIAL:
        if network.version == address.version and address in network:
            return (_LOOPBACK if what == "loopback" else str(network)), what
    return None
