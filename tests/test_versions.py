"""How two answers of a source compare."""

from __future__ import annotations

import dataclasses

import pytest

from ddfs import errors
from ddfs.model import Digest, Manifest, Mirror
from ddfs.versions import (
    Validator,
    Visit,
    explained,
    has_changed,
    is_same,
    is_same_content,
    modified_at,
)

OLD = "Mon, 01 Jun 2026 10:00:00 GMT"
NEW = "Tue, 02 Jun 2026 10:00:00 GMT"
SEEN = Validator("u", '"a"', OLD, 100)


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        (Validator("u", '"a"', OLD, 100), False),
        (Validator("u", '"b"', NEW, 100), True),
        (Validator("u", '"b"', NEW, 101), True),
        # Another server of a site, whose tags are made from inode numbers.
        (Validator("u", '"b"', OLD, 100), False),
        # A mirror that lags has an older file, and of another size too.
        (Validator("u", '"b"', "Sun, 31 May 2026 10:00:00 GMT", 90), False),
        (Validator("u", None, None, None), False),
        (Validator("u", '"b"', None, None), True),
        (Validator("u", None, "nonsense", 101), True),
    ],
)
def test_weak_evidence_is_no_change(now: Validator, changed: bool) -> None:
    assert has_changed(SEEN, now) is changed


def test_the_same_is_only_what_a_server_vouches_for() -> None:
    assert is_same(SEEN, Visit(Validator("u"), is_not_modified=True))
    assert is_same(SEEN, Visit(SEEN))
    assert is_same(dataclasses.replace(SEEN, etag=None), Visit(SEEN))
    assert not is_same(SEEN, Visit(dataclasses.replace(SEEN, etag='"b"')))
    assert not is_same(SEEN, Visit(dataclasses.replace(SEEN, size=99)))
    assert not is_same(Validator("u"), Visit(Validator("u")))
    assert modified_at("Thu, 99 Foo 2026") is None


def manifest(*digests: str) -> Manifest:
    parsed = tuple(Digest.parse(text) for text in digests)
    return Manifest("f", 9, parsed, None, (Mirror("http://m/f"),))


def test_contents_compare_by_what_both_state() -> None:
    a256, b256 = "sha-256:" + "a" * 64, "sha-256:" + "b" * 64
    a512 = "sha-512:" + "c" * 128
    assert is_same_content(manifest(a256), manifest(a256))
    # A publisher may begin to give a stronger hash of the same file.
    assert is_same_content(manifest(a256), manifest(a512, a256))
    assert not is_same_content(manifest(a512, a256), manifest(b256))
    assert not is_same_content(manifest(a256), manifest(a512))


def test_an_explained_error_stays_what_it_was() -> None:
    lost = errors.MirrorsExhaustedError("lost", (errors.MirrorError("u", "x"),))
    told = explained(lost, "deb")
    assert isinstance(told, errors.MirrorsExhaustedError)
    assert told.failures == lost.failures
    assert "ddfs template update deb" in str(told)
    full = errors.StorageFullError("full")
    assert explained(full, "deb") is full
