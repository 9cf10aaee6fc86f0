"""Every fault of mirrorlab by name: the file is right, and the right mirror is named."""

from __future__ import annotations

import pytest
import trio
from fetch_target import fetch, manifest_of, random_bytes

from ddfs import errors
from ddfs.fetch.events import MirrorBlamed, MirrorFailed, PieceRejected
from ddfs.model import MiB
from tests.mirrorlab.mirrorlab import FAULTS, KiB, MirrorLab

SIZE = 24 * MiB + 12345
CONTENT = random_bytes(SIZE)

# What is said about the mirror in the end; None: its fault is no reason to complain.
COMPLAINTS = {
    "refuse": "connection refused",
    "corrupt": "wrong bytes|do not match",
    "corrupt_all": "wrong bytes|do not match",
    "corrupt_once": "wrong bytes|do not match",
    "wrong_size": "bytes, not",
    "wrong_total": "bytes, not",
    "no_range": "ignores ranges",
    "gzip": "gzip",
    "503": "too busy",
    "503_once": "too busy",
    "429": "too busy",
    "404": "404",
    "403": "403",
    "410": "410",
    "416": "416",
    "500": "500",
    "redirect_loop": "circle",
    "redirect_chain": "circle|too often",
    "redirect_file": "only http",
    "redirect_malformed": "malformed address",
    "redirect_nowhere": "without saying where",
    "overrange": "when asked for",
    "wrong_content_range": "when asked for",
    "no_content_range": "Content-Range",
    "garbage": "in the middle of its answer|no proper HTTP",
    "endless_head": "no proper HTTP",
    "die": "refused|closed|reset|early",
}

# Faults with which a mirror alone still delivers the file.
HARMLESS_ALONE = [
    "corrupt_once",
    "reset",
    "short",
    "no_range",
    "503_once",
    "redirect",
    "oversend",
    "short_range",
    "http10",
    "chunked",
    "until_close",
    "close_each",
    "close_idle",
]


@pytest.mark.parametrize("fault", sorted(FAULTS))
async def test_the_file_is_right_with_one_such_mirror_among_three(fault, tmp_path):
    async with MirrorLab() as lab:
        bad = lab.mirror(CONTENT, fault=fault, rate=60 * MiB, after=2 * MiB)
        good = [lab.mirror(CONTENT, rate=40 * MiB) for _ in range(2)]
        done = await fetch(manifest_of(CONTENT, [bad, *good]), tmp_path / "partial")
        assert done.content == CONTENT
        named = {e.mirror_url for e in done.of(MirrorFailed) + done.of(MirrorBlamed)}
        assert named <= {bad}
        assert {e.mirror_url for e in done.of(PieceRejected)} <= {bad}
        figures = {m.url: m for m in done.report.statistics.mirrors}
        assert all(figures[url].last_error is None for url in good)
        if fault in COMPLAINTS:
            assert figures[bad].last_error is not None
            assert any(word in figures[bad].last_error for word in COMPLAINTS[fault].split("|"))
        if fault.startswith("corrupt") and fault != "corrupt_late":
            assert [e.mirror_url for e in done.of(MirrorBlamed)] == [bad]
        if fault == "silent":
            assert lab[bad].requests == 1


@pytest.mark.parametrize("fault", HARMLESS_ALONE)
async def test_the_file_is_right_with_such_a_mirror_alone(fault, tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, fault=fault, after=2 * MiB)
        done = await fetch(manifest_of(CONTENT, [url]), tmp_path / "partial")
        assert done.content == CONTENT


# These are tried again after 1, 2 and 4 seconds; all at once here, to save time.
TRIED_AGAIN = ["503", "500", "garbage", "refuse", "die"]


async def _fails_alone(lab, fault, path):
    url = lab.mirror(CONTENT, fault=fault, after=2 * MiB)
    with pytest.raises(errors.MirrorsExhaustedError) as caught:
        await fetch(manifest_of(CONTENT, [url]), path, limit=90)
    (failure,) = caught.value.failures
    assert failure.url == url
    assert any(word in str(failure) for word in COMPLAINTS[fault].split("|"))


@pytest.mark.parametrize("fault", sorted(set(COMPLAINTS) - set(HARMLESS_ALONE) - set(TRIED_AGAIN)))
async def test_a_mirror_that_cannot_deliver_alone_ends_in_one_clear_error(fault, tmp_path):
    async with MirrorLab() as lab:
        await _fails_alone(lab, fault, tmp_path / "partial")


async def test_mirrors_that_might_recover_are_tried_again_and_given_up(tmp_path):
    begun = trio.current_time()
    async with MirrorLab() as lab, trio.open_nursery() as nursery:
        for fault in TRIED_AGAIN:
            nursery.start_soon(_fails_alone, lab, fault, tmp_path / fault)
    assert 5 < trio.current_time() - begun < 60


async def test_a_mirror_never_gets_to_write_outside_of_what_it_was_asked(tmp_path):
    """What it sends beyond the range would land in another mirror's pieces."""
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, fault="oversend", rate=30 * MiB) for _ in range(3)]
        done = await fetch(manifest_of(CONTENT, urls), tmp_path / "partial")
        assert done.content == CONTENT
        assert done.of(PieceRejected) == []


async def test_pieces_larger_than_what_a_connection_lives_for(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, fault="reset", after=3 * MiB)
        manifest = manifest_of(CONTENT, [url], piece_length=16 * MiB)
        assert (await fetch(manifest, tmp_path / "partial")).content == CONTENT


async def test_a_redirect_is_resolved_once(tmp_path):
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, fault="redirect", rate=40 * MiB)
        done = await fetch(manifest_of(CONTENT, [url]), tmp_path / "partial")
        assert done.content == CONTENT
        asked = sum(b"?there" not in head.split(b"\r\n")[0] for head in lab[url].heads)
        assert asked == 1
        assert lab[url].requests > 2


async def test_connections_are_kept_between_requests(tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, rate=30 * MiB) for _ in range(2)]
        await fetch(manifest_of(CONTENT, urls), tmp_path / "partial")
        assert sum(lab[url].connections for url in urls) < sum(lab[url].requests for url in urls)


async def test_every_mirrors_error_is_kept_when_all_fail(tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, fault=fault) for fault in ("404", "410", "gzip")]
        with pytest.raises(errors.MirrorsExhaustedError) as caught:
            await fetch(manifest_of(CONTENT, urls), tmp_path / "partial", limit=90)
        assert sorted(f.url for f in caught.value.failures) == sorted(urls)
        assert "image.img" in str(caught.value)


async def test_all_mirrors_wrong_in_the_same_way_is_the_documents_fault(tmp_path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, fault="corrupt_all") for _ in range(3)]
        with pytest.raises(errors.ChecksumError, match="document"):
            await fetch(manifest_of(CONTENT, urls), tmp_path / "partial", limit=90)
        assert lab.bytes_sent < 3 * SIZE


async def test_no_mirror_at_all(tmp_path):
    with pytest.raises(errors.MirrorsExhaustedError, match="no mirror"):
        await fetch(manifest_of(CONTENT, []), tmp_path / "partial", limit=90)


async def test_a_small_range_is_not_spread_over_many_mirrors(tmp_path):
    content = CONTENT[: 300 * KiB]
    async with MirrorLab() as lab:
        urls = [lab.mirror(content) for _ in range(8)]
        await fetch(manifest_of(content, urls), tmp_path / "partial")
        assert lab.requests == 1


async def test_who_ignores_ranges_need_not_wait_for_a_mirror_that_is_silent(tmp_path):
    """Whole files come from it as a last resort, which is better than nothing for half a minute."""
    content = CONTENT[: 2 * MiB]
    async with MirrorLab() as lab:
        urls = [lab.mirror(content, fault="unreachable"), lab.mirror(content, fault="no_range")]
        # The other one is given up after 48 s.
        done = await fetch(manifest_of(content, urls), tmp_path / "partial", limit=20)
        assert done.content == content


@pytest.mark.parametrize("piece_length", [MiB, None])
async def test_several_mirrors_may_ignore_ranges(piece_length, tmp_path):
    content = CONTENT[: 6 * MiB]
    async with MirrorLab() as lab:
        urls = [lab.mirror(content, fault="no_range", rate=rate * MiB) for rate in (40, 4, 20)]
        manifest = manifest_of(content, urls, piece_length=piece_length)
        done = await fetch(manifest, tmp_path / "partial")
        assert done.content == content
        assert lab.requests <= 12
