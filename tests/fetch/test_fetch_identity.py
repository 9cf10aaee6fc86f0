"""A file that changes on a mirror while it is fetched."""

from __future__ import annotations

import pytest
from fetch_target import fetch, manifest_of, random_bytes

from ddfs import errors
from ddfs.fetch.events import MirrorFailed, PieceRejected, WholeFileCompared
from ddfs.fetch.identity import Identity
from ddfs.model import KiB, MiB
from tests.mirrorlab.mirrorlab import MirrorLab

CONTENT = random_bytes(24 * MiB + 12345)


@pytest.mark.parametrize(
    ("answers", "changed"),
    [
        ([{"etag": '"a"'}, {"etag": '"a"'}], False),
        ([{"etag": '"a"'}, {"etag": '"b"'}], True),
        ([{}, {"etag": '"b"'}], False),
        ([{"etag": '"a"'}, {}], False),
        ([{"last-modified": "x"}, {"last-modified": "y"}], True),
        ([{"etag": '"a"', "last-modified": "x"}, {"etag": '"b"', "last-modified": "x"}], False),
        ([{"etag": '"a"', "last-modified": "x"}, {"etag": '"a"', "last-modified": "y"}], False),
        ([{"etag": '"a"', "last-modified": "x"}, {"etag": '"b"', "last-modified": "y"}], True),
        ([{"etag": '"a"'}, {"last-modified": "x"}, {"etag": '"b"', "last-modified": "y"}], True),
        ([{"etag": '"a"'}, {"etag": '"b"'}, {"etag": '"b"'}], False),
    ],
)
def test_one_validator_that_stays_is_enough(answers, changed):
    identity = Identity()
    assert [identity.has_changed(each) for each in answers][-1] is changed


async def test_without_piece_hashes_such_a_mirror_is_left(tmp_path):
    async with MirrorLab() as lab:
        changing = lab.mirror(CONTENT, rate=20 * MiB, fault="change", after=3 * MiB)
        urls = [changing, lab.mirror(CONTENT, rate=20 * MiB)]
        done = await fetch(manifest_of(CONTENT, urls, piece_length=None), tmp_path / "partial")
    assert done.content == CONTENT
    failed = [e for e in done.of(MirrorFailed) if e.is_final]
    assert [e.mirror_url for e in failed] == [changing]
    assert "was changed while it was fetched" in failed[0].error.message
    assert [e.ok for e in done.of(WholeFileCompared)] == [True], "two versions were mixed"


async def test_with_them_no_piece_is_made_of_two_versions(tmp_path):
    async with MirrorLab() as lab:
        # It breaks off in the middle of a piece, and goes on there with the newer version.
        changing = lab.mirror(CONTENT, rate=20 * MiB, fault="change", after=3 * MiB + 300 * KiB)
        urls = [changing, lab.mirror(CONTENT, rate=20 * MiB)]
        done = await fetch(manifest_of(CONTENT, urls, piece_length=MiB), tmp_path / "partial")
    assert done.content == CONTENT
    messages = [e.error.message for e in done.of(MirrorFailed) if e.mirror_url == changing]
    assert any("was changed while it was fetched" in message for message in messages)
    assert {e.mirror_url for e in done.of(PieceRejected)} <= {changing}


async def test_alone_it_is_said_by_name(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, rate=40 * MiB, fault="change", after=3 * MiB)
        with pytest.raises(errors.MirrorsExhaustedError, match="was changed while") as caught:
            await fetch(manifest_of(CONTENT, [url], piece_length=None), tmp_path / "partial")
    assert url in str(caught.value)


async def test_servers_with_etags_of_their_own_are_one_mirror(tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, rate=20 * MiB, fault="other_etags") for _ in range(2)]
        done = await fetch(manifest_of(CONTENT, urls, piece_length=None), tmp_path / "partial")
    assert done.content == CONTENT
    assert done.of(MirrorFailed) == []
