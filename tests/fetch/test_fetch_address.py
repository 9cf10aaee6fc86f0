from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddfs.fetch.address import Address, AddressError, redirected
from ddfs.fetch.connection import parse_content_range


@pytest.mark.parametrize(
    ("url", "origin", "target", "host"),
    [
        ("http://a.example/x", ("http", "a.example", 80), "/x", "a.example"),
        ("https://A.example", ("https", "a.example", 443), "/", "a.example"),
        ("http://h:8080/a%20b?q=1&r=%2F", ("http", "h", 8080), "/a%20b?q=1&r=%2F", "h:8080"),
        ("http://[::1]:81/é", ("http", "::1", 81), "/%C3%A9", "[::1]:81"),
        ("http://bücher.example/", ("http", "xn--bcher-kva.example", 80), "/", None),
        ("http://h/a?b#c", ("http", "h", 80), "/a?b", "h"),
    ],
)
def test_an_address_is_taken_apart(url, origin, target, host):
    address = Address.parse(url)
    assert address.origin == origin
    assert address.target == target
    assert address.host_header == (host or origin[1])


def test_a_password_in_the_address_goes_into_a_header_of_its_own():
    address = Address.parse("http://user:p%40ss@h/x")
    assert address.authorization == "Basic dXNlcjpwQHNz"
    assert "user" not in address.target + address.host_header


@pytest.mark.parametrize(
    "url",
    ["ftp://h/x", "file:///etc/passwd", "/x", "", "http://", "http://h:99999/", "http://h/a b",
     "http://h/\r\nX: y", "http://[::1/x", "http://h/" + "x" * 9000],
)  # fmt: skip
def test_what_is_no_usable_address_is_refused(url):
    with pytest.raises(AddressError):
        Address.parse(url)


def test_redirects_stay_on_http_and_never_leave_tls():
    https, http = Address.parse("https://a/x/y"), Address.parse("http://a/x/y")
    assert redirected(https, "z").url == "https://a/x/z"
    assert redirected(http, "https://b/").url == "https://b/"
    assert redirected(http, "//c/d").url == "http://c/d"
    with pytest.raises(AddressError, match="from https"):
        redirected(https, "http://a/x/y")
    with pytest.raises(AddressError, match="only http"):
        redirected(http, "file:///etc/passwd")
    for location in (
        "http://[x/",
        "//[x",
        "//c.\u0753]ee/",
        "http://h:x/",
        "http://\u2100.example/",
    ):
        with pytest.raises(AddressError):
            redirected(http, location)


def test_credentials_do_not_travel_to_where_a_redirect_leads():
    address = redirected(Address.parse("http://user:secret@a/x"), "http://b/y")
    assert address.authorization is None


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_clear_error(text):
    try:
        address = Address.parse(text)
    except AddressError:
        return
    assert address.target.isascii()
    assert not set(address.target + address.host_header) & set(" \r\n")


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ("bytes 0-9/10", (0, 9, 10)),
        ("Bytes  5-5/*", (5, 5, None)),
        ("bytes 9-0/10", None),
        ("bytes */10", None),
        ("bytes 0-9", None),
        ("items 0-9/10", None),
        ("bytes 0-9/10, 11-12/13", None),
        ("bytes -5-9/10", None),
        ("bytes 0-" + "9" * 30 + "/10", None),
    ],
)
def test_content_range(value, parsed):
    assert parse_content_range(value) == parsed
