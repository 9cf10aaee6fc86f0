"""Whole-file hashes: a file is accepted only when they hold, and a liar is found by them."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import replace

import pytest
from fetch_target import FileTarget, fetch, manifest_of, random_bytes

from ddfs import errors
from ddfs.fetch import aside, transfer
from ddfs.fetch.events import MirrorBlamed, PieceVerified, WholeFileCompared
from ddfs.fetch.transfer import PieceRecord
from ddfs.model import Digest, HashAlgorithm, MiB
from tests.mirrorlab.mirrorlab import MirrorLab

CONTENT = random_bytes(24 * MiB + 12345)
RATE = 60 * MiB


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_without_piece_hashes_the_liar_is_found_wherever_it_stands(place, tmp_path):
    async with MirrorLab() as lab:
        urls = [
            lab.mirror(CONTENT, rate=RATE, fault="corrupt_all" if at == place else None)
            for at in range(3)
        ]
        done = await fetch(manifest_of(CONTENT, urls, piece_length=None), tmp_path / "partial")
        assert done.content == CONTENT
        assert [e.mirror_url for e in done.of(MirrorBlamed)] == [urls[place]]
        assert [e.ok for e in done.of(WholeFileCompared)] == [False, True]
        assert done.of(PieceVerified) == []
        assert lab.bytes_sent < 3.5 * len(CONTENT)
        assert {r.mirror_url for r in done.journal.values()} <= set(urls) - {urls[place]}


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_liar_is_found_without_hashes_made_on_the_way(place, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "OWN_HASH_BYTES_PER_SECOND", 0)
    async with MirrorLab() as lab:
        urls = [
            lab.mirror(CONTENT, rate=RATE, fault="corrupt_all" if at == place else None)
            for at in range(3)
        ]
        path, journal = tmp_path / "partial", {}
        manifest = manifest_of(CONTENT, urls, piece_length=None)
        done = await fetch(manifest, path, journal=journal)
        assert done.content == CONTENT
        assert [e.mirror_url for e in done.of(MirrorBlamed)] == [urls[place]]
        assert lab.bytes_sent < 3.5 * len(CONTENT)
        # Journaled without a hash or not, it is on disk: nothing is fetched again.
        assert any(record.sha256 == b"" for record in journal.values())
        sent = lab.bytes_sent
        assert (await fetch(manifest, path, journal=journal)).content == CONTENT
        assert lab.bytes_sent == sent


async def test_a_piece_that_two_mirrors_wrote_is_nobodys_until_it_is_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "OWN_HASH_BYTES_PER_SECOND", 0)
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, rate=RATE), lab.mirror(CONTENT, rate=RATE, fault="drip")]
        manifest = manifest_of(CONTENT, urls, piece_length=None)
        done = await fetch(manifest, tmp_path / "partial")
        assert done.content == CONTENT
        assert {r.mirror_url for r in done.journal.values()} == {urls[0], ""}


@pytest.mark.parametrize("place", [0, 1])
async def test_without_a_third_opinion_the_whole_file_decides(place, tmp_path):
    async with MirrorLab() as lab:
        urls = [
            lab.mirror(CONTENT, rate=RATE, fault="corrupt_all" if at == place else None)
            for at in range(2)
        ]
        done = await fetch(manifest_of(CONTENT, urls, piece_length=None), tmp_path / "partial")
        assert done.content == CONTENT
        assert [e.mirror_url for e in done.of(MirrorBlamed)] == [urls[place]]
        assert len(done.of(WholeFileCompared)) <= 3
        # All of it, and of each what the other sent; nothing a third time.
        assert lab.bytes_sent < 3 * len(CONTENT)


@pytest.mark.parametrize("reason", ["no file", "no room"])
async def test_where_nothing_can_be_kept_aside_it_is_fetched_again(reason, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    content = CONTENT[: 12 * MiB]
    if reason == "no file":
        monkeypatch.setattr(FileTarget, "open_aside", refuse)
    else:
        monkeypatch.setattr(aside, "_SHARE_OF_FREE", 1 << 60)
    async with MirrorLab() as lab:
        urls = [lab.mirror(content, rate=RATE, fault="corrupt_all"), lab.mirror(content, rate=RATE)]
        done = await fetch(manifest_of(content, urls, piece_length=None), tmp_path / "partial")
        assert done.content == content
        assert [e.mirror_url for e in done.of(MirrorBlamed)] == [urls[0]]
        assert {r.mirror_url for r in done.journal.values()} == {urls[1]}


async def test_a_journal_names_who_sent_what_was_put_back(tmp_path):
    content = CONTENT[: 12 * MiB]
    async with MirrorLab() as lab:
        urls = [lab.mirror(content, rate=RATE, fault="corrupt_all"), lab.mirror(content, rate=RATE)]
        manifest, journal = manifest_of(content, urls, piece_length=None), {}
        done = await fetch(manifest, tmp_path / "partial", journal=journal)
        assert done.content == content
        for piece, record in journal.items():
            place = manifest.grid.bytes_of(piece)
            part = content[place.start : place.end]
            assert record == PieceRecord(piece, urls[1], hashlib.sha256(part).digest())
        assert sorted(journal) == list(range(manifest.grid.count))


@pytest.mark.parametrize("place", [0, 1])
async def test_of_two_only_what_they_disagree_about_is_fetched_a_third_time(place, tmp_path):
    content, rate = CONTENT[: 24 * MiB], 24 * MiB
    async with MirrorLab() as lab:
        urls = [
            lab.mirror(content, rate=rate, fault="corrupt" if at == place else None)
            for at in range(2)
        ]
        done = await fetch(manifest_of(content, urls, piece_length=None), tmp_path / "partial")
        assert done.content == content
        assert [e.mirror_url for e in done.of(MirrorBlamed)] == [urls[place]]
        assert lab.bytes_sent < 3 * len(content)


async def test_a_byte_that_was_wrong_once_is_mended_by_the_same_mirror(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, fault="corrupt_once")
        done = await fetch(manifest_of(CONTENT, [url], piece_length=None), tmp_path / "partial")
        assert done.content == CONTENT


@pytest.mark.parametrize("mirrors", [1, 3])
async def test_bytes_that_stay_wrong_are_refused_in_bounded_time(mirrors, tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, fault="corrupt_all") for _ in range(mirrors)]
        seen: list = []
        with pytest.raises(errors.ChecksumError, match=r"image\.img.*sha-256"):
            await fetch(
                manifest_of(CONTENT, urls, piece_length=None), tmp_path / "partial", events=seen
            )
        assert 1 <= sum(isinstance(e, WholeFileCompared) for e in seen) <= 3
        assert lab.bytes_sent < 6 * len(CONTENT)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("agree", [False, True])
async def test_one_honest_mirror_of_three_is_enough(place, agree, tmp_path):
    """Where the two agree they have the majority, and are not right all the same."""
    content = CONTENT[: 6 * MiB]
    other = bytes(byte ^ 2 for byte in content)
    lies = [other, other] if agree else [other, bytes(byte ^ 4 for byte in content)]
    async with MirrorLab() as lab:
        contents = [*lies[:place], content, *lies[place:]]
        urls = [lab.mirror(each, rate=RATE) for each in contents]
        done = await fetch(manifest_of(content, urls, piece_length=None), tmp_path / "partial")
        assert done.content == content
        blamed = {e.mirror_url for e in done.of(MirrorBlamed)}
        assert blamed == {*urls} - {urls[place]}
        assert {r.mirror_url for r in done.journal.values()} == {urls[place]}
        # In so small a file everything is a sample: up to twice, and then from each alone.
        assert lab.bytes_sent < 9 * len(content)


async def test_three_liars_of_three_are_named_and_leave_nothing(tmp_path):
    """The bytes of no two are the same, so that nobody has a second voice."""
    content = CONTENT[: 6 * MiB]
    async with MirrorLab() as lab:
        urls = [lab.mirror(bytes(byte ^ bit for byte in content), rate=RATE) for bit in (1, 2, 4)]
        manifest, journal = manifest_of(content, urls, piece_length=None), {}
        events: list = []
        with pytest.raises(errors.ChecksumError, match="contradict each other") as caught:
            await fetch(manifest, tmp_path / "partial", journal=journal, events=events)
        assert all(url in str(caught.value) for url in urls)
        assert not [event for event in events if isinstance(event, MirrorBlamed)]
        assert journal == {}
        assert lab.bytes_sent < 9 * len(content)
        # What they left does not stand in the way of who fetches from an honest one.
        honest = manifest_of(content, [lab.mirror(content)], piece_length=None)
        again = await fetch(honest, tmp_path / "partial", journal=journal)
        assert again.content == content
        assert again.report.comparisons == 1


async def test_bytes_that_all_mirrors_agree_on_are_forgotten_too(tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, fault="corrupt_all") for _ in range(2)]
        manifest, journal = manifest_of(CONTENT, urls, piece_length=None), {}
        with pytest.raises(errors.ChecksumError, match="check the source of the checksum"):
            await fetch(manifest, tmp_path / "partial", journal=journal)
        assert journal == {}


async def test_right_pieces_and_a_wrong_whole_hash_are_refused(tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT) for _ in range(2)]
        manifest = manifest_of(CONTENT, urls, algorithm=HashAlgorithm.SHA1)
        wrong = Digest(HashAlgorithm.SHA256, "0" * 64)
        with pytest.raises(errors.ChecksumError, match="every piece"):
            await fetch(replace(manifest, digests=(wrong,)), tmp_path / "partial")
        assert lab.bytes_sent < 2 * len(CONTENT)


async def test_every_strong_digest_has_to_hold(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        manifest = manifest_of(CONTENT, [url])
        both = (
            Digest(HashAlgorithm.SHA512, hashlib.sha512(CONTENT).hexdigest()),
            Digest(HashAlgorithm.SHA256, "1" * 64),
        )
        with pytest.raises(errors.ChecksumError, match="sha-256"):
            await fetch(replace(manifest, digests=both), tmp_path / "partial")


async def test_a_weak_digest_is_passed_over_beside_a_strong_one(tmp_path):
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        digests = (*manifest.digests, Digest(HashAlgorithm.MD5, "2" * 32))
        done = await fetch(replace(manifest, digests=digests), tmp_path / "partial")
        assert done.content == CONTENT


async def test_a_weak_digest_alone_decides(tmp_path):
    async with MirrorLab() as lab:
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)], piece_length=None)
        wrong = replace(manifest, digests=(Digest(HashAlgorithm.MD5, "2" * 32),))
        with pytest.raises(errors.ChecksumError, match="md5"):
            await fetch(wrong, tmp_path / "partial")


async def test_damage_on_disk_since_an_earlier_run_is_found_and_mended(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT)
        manifest = manifest_of(CONTENT, [url])
        path = tmp_path / "partial"
        path.write_bytes(bytes(2 * MiB))
        journal = {0: PieceRecord(0, url, b""), 1: PieceRecord(1, url, b"")}
        done = await fetch(manifest, path, journal=journal)
        assert done.content == CONTENT
        assert [e.ok for e in done.of(WholeFileCompared)] == [False, True]
        assert lab.bytes_sent < 1.5 * len(CONTENT)


@pytest.mark.parametrize("piece_length", [MiB, None])
async def test_an_empty_file(piece_length, tmp_path):
    async with MirrorLab() as lab:
        manifest = manifest_of(b"", [lab.mirror(b"")], piece_length=piece_length)
        done = await fetch(manifest, tmp_path / "partial")
        assert done.content == b""
        assert lab.requests == 0
        wrong = replace(manifest, digests=(Digest(HashAlgorithm.SHA256, "3" * 64),))
        with pytest.raises(errors.ChecksumError):
            await fetch(wrong, tmp_path / "partial")


async def test_nobody_waits_for_the_word_of_a_mirror_that_is_silent(tmp_path):
    """Only a third one could say who of two lies, and it says nothing."""
    content = CONTENT[: 3 * MiB]
    async with MirrorLab() as lab:
        urls = [
            lab.mirror(content, fault="corrupt_all"),
            lab.mirror(content, latency=0.05),
            lab.mirror(content, fault="silent"),
        ]
        # Others give up after 60 s without progress.
        done = await fetch(manifest_of(content, urls, piece_length=None), tmp_path / "x", limit=25)
        assert done.content == content
        assert [e.mirror_url for e in done.of(MirrorBlamed)] == [urls[0]]


async def test_with_piece_hashes_who_was_wrong_is_asked_before_the_silent(tmp_path):
    content = CONTENT[: 3 * MiB]
    async with MirrorLab() as lab:
        urls = [lab.mirror(content, fault="corrupt_once"), lab.mirror(content, fault="silent")]
        done = await fetch(manifest_of(content, urls), tmp_path / "x", limit=25)
        assert done.content == content
        assert not done.of(MirrorBlamed)


async def test_a_good_mirror_is_not_blamed_for_what_a_disk_lost(tmp_path, monkeypatch):
    """What came faster than it was hashed, and stayed on disk until the next run."""
    monkeypatch.setattr(transfer, "OWN_HASH_BYTES_PER_SECOND", 0)
    content = CONTENT[: 4 * MiB]
    async with MirrorLab() as lab:
        urls = [lab.mirror(content) for _ in range(3)]
        path = tmp_path / "x"
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:MiB])
        journal = {0: PieceRecord(0, urls[0], b"")}
        manifest = manifest_of(content, urls, piece_length=None)
        done = await fetch(manifest, path, journal=journal)
        assert done.content == content
        assert [e.ok for e in done.of(WholeFileCompared)][-2:] == [False, True]
        assert not done.of(MirrorBlamed)


@pytest.mark.parametrize("honest", [{"fault": "503_once"}, {"latency": 1.3}])
async def test_the_only_honest_mirror_is_waited_for(honest, tmp_path):
    """A liar has brought everything before the other one says anything."""
    content = CONTENT[: 3 * MiB]
    async with MirrorLab() as lab:
        urls = [lab.mirror(content, fault="corrupt_all"), lab.mirror(content, **honest)]
        done = await fetch(manifest_of(content, urls, piece_length=None), tmp_path / "x")
        assert done.content == content
        assert [e.mirror_url for e in done.of(MirrorBlamed)] == [urls[0]]
