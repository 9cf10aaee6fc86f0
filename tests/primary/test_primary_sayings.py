"""What hosts say of a content to each other is believed only where it makes sense."""

from __future__ import annotations

import json

import pytest

from ddfs.model import Digest, HashAlgorithm
from ddfs.primary.sayings import Sayings

STEM = "sha-256-" + "ab" * 32
DIGEST = Digest(HashAlgorithm.SHA256, "cd" * 32)
KEY = HashAlgorithm.SHA256.value


def test_what_was_said_last_is_heard_by_all(tmp_path):
    one, other = Sayings(tmp_path, "1" * 32), Sayings(tmp_path, "2" * 32)
    assert other.said_of(STEM) is None
    one.say(STEM, 5, Digest(HashAlgorithm.SHA256, "ef" * 32))
    other.say(STEM, 7, DIGEST)
    assert one.said_of(STEM) == other.said_of(STEM) == (7, DIGEST)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff",
        b"[]",
        b"{" * 1000,
        json.dumps({"size": 7}).encode(),
        json.dumps({"size": True, KEY: DIGEST.hexdigest}).encode(),
        json.dumps({"size": -1, KEY: DIGEST.hexdigest}).encode(),
        json.dumps({"size": 2**80, KEY: DIGEST.hexdigest}).encode(),
        json.dumps({"size": 7, KEY: None}).encode(),
        json.dumps({"size": 7, KEY: "CD" * 32}).encode(),
        json.dumps({"size": 7, KEY: "cd" * 31}).encode(),
    ],
)
def test_what_makes_no_sense_was_not_said(tmp_path, said):
    (tmp_path / STEM).write_bytes(said)
    assert Sayings(tmp_path, "1" * 32).said_of(STEM) is None


def test_what_a_killed_daemon_was_writing_goes_and_nothing_else(tmp_path):
    ours, theirs = "1" * 32, "2" * 32
    Sayings(tmp_path, ours).say(STEM, 7, DIGEST)
    for host in (ours, theirs):
        (tmp_path / f"{STEM}.{host}.new").write_text('{"si')
    Sayings(tmp_path, ours).sweep()
    assert sorted(p.name for p in tmp_path.iterdir()) == [STEM, f"{STEM}.{theirs}.new"]
