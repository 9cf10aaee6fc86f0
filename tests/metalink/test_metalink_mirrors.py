"""Addresses to URIs, and names of files."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddfs import errors
from ddfs.metalink import mirrors, names
from ddfs.model import LOWEST_PRIORITY, Mirror

# Other work on this machine may slow an example down; the length of the run is pytest's.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("http://h.example/a", "http://h.example/a"),
        ("  HTTPS://H.Example:443/a#part ", "https://h.example/a"),
        ("http://h.example", "http://h.example/"),
        ("http://h.example:80", "http://h.example/"),
        ("https://h.example:80/", "https://h.example:80/"),
        ("http://h.example/a%20b c%zz?q=ä&r=%41", "http://h.example/a%20b%20c%25zz?q=%C3%A4&r=%41"),
        ("http://[2001:DB8::1]:8080/a", "http://[2001:db8::1]:8080/a"),
        ("http://192.0.2.1/a", "http://192.0.2.1/a"),
        ("http://my_host/a", "http://my_host/a"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("../b", "http://base.example/b"),
        ("//other.example/b", "http://other.example/b"),
        ("?q", "http://base.example/d/x?q"),
    ],
)
def test_to_uri(address: str, uri: str):
    assert mirrors.to_uri(address, "http://base.example/d/x") == uri
    assert mirrors.to_uri(uri) == uri


@pytest.mark.parametrize(
    "address",
    [
        "",
        "a/b",
        "ftp://h.example/a",
        "file:///etc/passwd",
        "http:///a",
        "http://h.example\\@evil.example/a",
        "http://user@h.example/a",
        "http://user:password@h.example/a",
        "http://h.example/a\r\nHost: evil",
        "http://h.example/a\tb",
        "http://h ost/a",
        "http://h%2eexample/a",
        "http://-h.example/a",
        "http://h..example/a",
        "http://[::1/a",
        "http://[fe80::1%25eth0]/a",
        "http://[v1.x]/a",
        "http://h.example:0/a",
        "http://h.example:65536/a",
        "http://h.example:x/a",
        "http://" + "h" * 300 + "/a",
        "http://" + "ü" * 200 + "/a",
        "http://h.example/" + "a" * 9000,
        "http://h.example/\udcff",
    ],
)
def test_not_a_usable_address(address: str):
    with pytest.raises(errors.InvalidValueError, match="not a usable address"):
        mirrors.to_uri(address)


@UNHURRIED
@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://h.example/", "//"]))
def test_to_uri_gives_plain_uris_that_stay(text: str, prefix: str):
    try:
        uri = mirrors.to_uri(prefix + text, "http://base.example/d/")
    except errors.InvalidValueError:
        return
    assert uri.isascii()
    assert uri.startswith(("http://", "https://"))
    assert not set(uri) & set(' "<>\\^`{|}\r\n')
    assert "@" not in uri.split("/")[2]
    assert mirrors.to_uri(uri) == uri


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        ("1", 1),
        (" 7 ", 7),
        ("999999", 999_999),
        ("0", LOWEST_PRIORITY),
        ("1000000", LOWEST_PRIORITY),
        ("-1", LOWEST_PRIORITY),
        ("first", LOWEST_PRIORITY),
        ("9" * 5000, LOWEST_PRIORITY),
        (None, LOWEST_PRIORITY),
    ],
)
def test_priority(text: str | None, priority: int):
    assert mirrors.priority_from(text) == priority


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        *[("100", 1), ("1", 100), ("0", 101), ("-5", 106), ("200", 1), ("", LOWEST_PRIORITY)],
        *[(None, LOWEST_PRIORITY), ("-99999999", LOWEST_PRIORITY), ("1.5", LOWEST_PRIORITY)],
    ],
)
def test_preference(text: str | None, priority: int):
    assert mirrors.priority_from_preference(text) == priority


@pytest.mark.parametrize(
    ("text", "location"),
    [("DE", "de"), (" us ", "us"), ("USA", None), ("", None), ("1a", None), ("äö", None)],
)
def test_location(text: str, location: str | None):
    assert mirrors.location_from(text) == location


@pytest.mark.parametrize(("text", "count"), [("4", 4), ("0", None), ("-1", None), ("x", None)])
def test_connections(text: str, count: int | None):
    assert mirrors.connections_from(text) == count


def test_an_address_that_comes_twice_keeps_its_best_place():
    a, b = Mirror("http://a/", 5), Mirror("http://b/", 3)
    assert mirrors.in_order([a, b, Mirror("http://a/", 1, "de")], None) == (
        Mirror("http://a/", 1, "de"),
        b,
    )
    assert mirrors.in_order(
        [Mirror("http://a/"), Mirror("http://b/"), Mirror("http://a/")], None
    ) == (
        Mirror("http://a/"),
        Mirror("http://b/"),
    )


def test_a_preferred_location_outranks_priorities_and_keeps_their_order():
    far, near, nearer = (
        Mirror("http://far/", 1, "us"),
        Mirror("http://near/", 7, "de"),
        Mirror("http://nearer/", 3, "de"),
    )
    assert mirrors.in_order([far, near, nearer], "DE") == (nearer, near, far)
    assert mirrors.in_order([far, near, nearer], None) == (far, nearer, near)


@pytest.mark.parametrize(
    "name",
    ["a", "a/b", "...", "..a", "a..", "~", "con", " a ", "a:b", "نام\u200cها.iso", "x" * 255],
)
def test_names_that_are_names(name: str):
    assert names.validate_file_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/a",
        "a/",
        "a/./b",
        "a/../b",
        "a//b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "a\x85b",
        *("a\u202eb", "\ufeffa", "a\u2028b", "a\u2066b", "a\uffff", "x" * 256, "é" * 128),
        "/".join("a" * 17),
        "/".join(["x" * 200] * 6),
    ],
)
def test_names_that_are_refused(name: str):
    with pytest.raises(errors.DocumentError, match="is refused") as caught:
        names.validate_file_name(name)
    assert str(caught.value).isprintable()


@UNHURRIED
@given(st.text(max_size=300))
def test_what_is_shown_of_a_name_is_one_short_line(name: str):
    shown = names.shown(name)
    assert shown.isprintable()
    assert len(shown) < 900
