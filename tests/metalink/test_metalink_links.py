"""Header fields of Metalink/HTTP to hashes and mirrors."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddfs.metalink import links
from ddfs.model import LOWEST_PRIORITY, Digest, HashAlgorithm, Mirror

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

URL = "https://origin.example/d/a.img"


def b64(algorithm: str, data: bytes = b"x") -> str:
    return base64.b64encode(hashlib.new(algorithm, data).digest()).decode()


SHA256 = Digest(HashAlgorithm.SHA256, hashlib.sha256(b"x").hexdigest())
SHA512 = Digest(HashAlgorithm.SHA512, hashlib.sha512(b"x").hexdigest())


def offer(status: int = 200, *, is_whole: bool = False, **headers: str) -> links.Offer:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return links.offer_of(fields, url=URL, status=status, is_whole=is_whole)


def test_duplicates_with_priority_and_location_and_a_metalink():
    found = offer(
        link='<http://m1.example/a.img>; rel=duplicate; pri=2; pref; geo=gb; depth=3, '
        '</mirror/a.img>;rel="duplicate"; geo="DE,<x>" , '
        '<a.img.torrent>; rel=describedby; type="application/x-bittorrent", '
        '<a.img.asc>; rel=describedby; type="application/pgp-signature",'
        '<a.img.meta4>; rel=describedby; type="application/metalink4+xml"; name="a;b",'
        '<http://m2.example/a.img>; REL="x duplicate"; pri=0'
    )  # fmt: skip
    assert found.duplicates == (
        Mirror("http://m1.example/a.img", 2, "gb"),
        Mirror("https://origin.example/mirror/a.img"),
        Mirror("http://m2.example/a.img", LOWEST_PRIORITY),
    )
    assert found.described_by == "https://origin.example/d/a.img.meta4"


@pytest.mark.parametrize(
    "link",
    [
        "",
        "http://m1.example/a.img; rel=duplicate",
        "<http://m1.example/a.img>; rel=next",
        "<http://m1.example/a.img>; rel=duplicate; anchor=/other",
        "<ftp://m1.example/a.img>; rel=duplicate",
        "<file:///etc/passwd>; rel=duplicate",
        "<http://u:p@m1.example/a.img>; rel=duplicate",
        "<a.meta4>; rel=describedby",
        "<" * 10_000,
        "<a>;" * 10_000,
    ],
)
def test_links_that_name_no_mirror(link: str):
    assert offer(link=link) == links.Offer()


@pytest.mark.parametrize(
    ("headers", "status", "is_whole"),
    [
        ({"digest": f"SHA-256={b64('sha256')}"}, 200, False),
        ({"digest": f"MD5={b64('md5')},SHA={b64('sha1')}, sha-256={b64('sha256')}"}, 302, False),
        ({"digest": f"id-sha-256={b64('sha256')}"}, 206, False),
        ({"repr_digest": f"sha-256=:{b64('sha256')}:"}, 206, False),
        ({"repr_digest": f"md5=:{b64('md5')}:, sha-256=:{b64('sha256')}:;q=1"}, 200, False),
        ({"content_digest": f"sha-256=:{b64('sha256')}:"}, 200, True),
    ],
)
def test_hashes_of_the_whole_file(headers: dict[str, str], status: int, is_whole: bool):
    assert offer(status, is_whole=is_whole, **headers).digests == (SHA256,)


def test_several_strong_hashes():
    both = f"sha-256=:{b64('sha256')}:, sha-512=:{b64('sha512')}:"
    assert set(offer(repr_digest=both).digests) == {SHA256, SHA512}


@pytest.mark.parametrize(
    ("headers", "status", "is_whole"),
    [
        # Of the part that was sent, or of nothing at all.
        ({"content_digest": f"sha-256=:{b64('sha256')}:"}, 206, True),
        ({"content_digest": f"sha-256=:{b64('sha256')}:"}, 200, False),
        # Of the redirect's own body.
        ({"repr_digest": f"sha-256=:{b64('sha256')}:"}, 302, False),
        # Of the encoded form.
        ({"repr_digest": f"sha-256=:{b64('sha256')}:", "content_encoding": "gzip"}, 200, False),
        ({"digest": f"SHA-256={b64('sha256')}", "content_encoding": "br"}, 200, False),
        # Too weak.
        ({"digest": f"MD5={b64('md5')}, SHA={b64('sha1')}, UNIXsum=30637"}, 200, False),
        ({"repr_digest": f"sha=:{b64('sha1')}:, md5=:{b64('md5')}:"}, 200, False),
        # Malformed.
        ({"digest": f"SHA-256={SHA256.hexdigest}"}, 200, False),
        ({"repr_digest": "sha-256=:AAAA:"}, 200, False),
        ({"repr_digest": "sha-256=:"}, 200, False),
        # Contradictory.
        (
            {
                "digest": f"SHA-256={b64('sha256')}",
                "repr_digest": f"sha-256=:{b64('sha256', b'y')}:",
            },
            200,
            False,
        ),
    ],
)
def test_hashes_that_are_not_believed(headers: dict[str, str], status: int, is_whole: bool):
    assert offer(status, is_whole=is_whole, **headers).digests == ()


@UNHURRIED
@given(
    st.dictionaries(
        st.sampled_from(["link", "digest", "repr-digest", "content-digest", "content-encoding"]),
        st.text(alphabet='<>;,=:"\\ rel=duplicate*sha-256/a\t', max_size=200) | st.text(),
    )
)
def test_arbitrary_fields(headers: dict[str, str]):
    found = links.offer_of(headers, url=URL, status=200, is_whole=True)
    assert all(mirror.url.startswith(("http://", "https://")) for mirror in found.duplicates)
