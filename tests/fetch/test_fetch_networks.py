"""Whose word may lead where."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddfs.fetch.networks import PUBLIC, network_of, parse_networks, plain_address, refusal

SPECIAL = [
    "127.0.0.1", "127.255.255.254", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255",
    "192.168.1.1", "100.64.0.1", "100.127.255.255", "169.254.169.254", "fe80::1", "fe80::1%eth0",
    "fd00::1", "fc00::1", "fec0::1", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "239.1.1.1",
    "ff02::1", "192.0.2.1", "198.51.100.7", "203.0.113.9", "198.18.0.1", "198.19.255.255",
    "240.0.0.1", "255.255.255.255", "2001:db8::1", "3fff::1", "2001::1", "100::1", "::7f00:1",
    "64:ff9b:1::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1",
    "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:c0a8:101::1", "192.0.0.8",
]  # fmt: skip
PUBLIC_ADDRESSES = [
    "1.1.1.1", "9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "100.63.255.255",
    "100.128.0.0", "192.167.255.255", "192.169.0.0", "223.255.255.255", "2a00:1450::1",
    "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
]  # fmt: skip


@pytest.mark.parametrize("address", SPECIAL)
def test_an_address_of_a_special_network_is_refused_to_a_public_document(address):
    assert network_of(address) != PUBLIC
    text = refusal(address, PUBLIC, ())
    assert text is not None
    assert "allow_networks" in text
    assert refusal(address, None, ()) is None
    assert refusal(address, network_of(address), ()) is None


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_an_address_of_the_public_network_is_never_refused(address):
    assert network_of(address) == PUBLIC
    assert refusal(address, PUBLIC, ()) is None
    assert refusal(address, "10.0.0.0/8", ()) is None


def test_each_private_block_is_a_network_of_its_own():
    assert refusal("10.1.2.3", network_of("10.9.9.9"), ()) is None
    assert refusal("192.168.0.1", network_of("10.9.9.9"), ()) is not None
    assert refusal("127.0.0.1", network_of("192.168.0.1"), ()) is not None
    assert refusal("169.254.169.254", network_of("10.0.0.1"), ()) is not None
    assert refusal("fd00::1", network_of("fdff::1"), ()) is None


def test_both_loopbacks_are_this_host():
    assert network_of("::1") == network_of("127.0.0.2") == network_of("::ffff:127.0.0.3")
    assert refusal("::1", network_of("127.0.0.1"), ()) is None


def test_the_settings_allow_networks():
    allowed = parse_networks(["10.1.0.0/16", "fd00:1::/32"])
    assert refusal("10.1.2.3", PUBLIC, allowed) is None
    assert refusal("::ffff:10.1.2.3", PUBLIC, allowed) is None
    assert refusal("10.2.2.3", PUBLIC, allowed) is not None
    assert refusal("fd00:1::5", PUBLIC, allowed) is None
    assert refusal("fd00:2::5", PUBLIC, allowed) is not None


@given(st.integers(0, 2**32 - 1))
def test_an_embedded_address_is_judged_as_the_plain_one(number):
    plain = str(IPv4Address(number))
    for embedded in (
        IPv6Address(0xFFFF << 32 | number),
        IPv6Address(0x0064FF9B << 96 | number),
        IPv6Address(0x2002 << 112 | number << 80 | 5),
    ):
        assert network_of(str(embedded)) == network_of(plain)


@given(st.ip_addresses())
def test_whatever_the_standard_library_calls_special_is(address):
    if not address.is_global and plain_address(str(address)) == address:
        assert refusal(str(address), PUBLIC, ()) is not None
