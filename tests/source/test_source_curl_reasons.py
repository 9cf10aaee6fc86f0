"""Why curl and libzypp gave metalink up, and what happens here instead: a test each.

curl 7.78 removed it after two CVEs, the risk of an XML library, and a format that lets a
remote document name any address and file; libzypp after files that took longer to look up
than to fetch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from ddfs import errors
from ddfs.metalink import limits, read, write
from ddfs.model import KiB, Mirror
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.source.source_download import described, fetched, published

CONTENT = bytes(range(256)) * (4 * KiB)


async def test_wrong_bytes_are_no_warning_and_no_file(tmp_path: Path):
    # CVE-2021-22922: curl said that the hash is wrong, and kept the file under its name.
    async with MirrorLab() as lab:
        url = published(lab, described(CONTENT, lab.mirror(CONTENT, fault="corrupt_all")))
        with trio.fail_after(90), pytest.raises(errors.SourceError):
            await fetched(url, tmp_path / "a.img")
        assert not (tmp_path / "a.img").exists()
        # Without piece hashes either.
        whole = described(CONTENT, lab.mirror(CONTENT, fault="corrupt_all"), piece_length=None)
        with trio.fail_after(90), pytest.raises(errors.SourceError):
            await fetched(published(lab, whole), tmp_path / "b.img")
        assert not (tmp_path / "b.img").exists()


async def test_credentials_for_the_document_reach_no_mirror(tmp_path: Path):
    # CVE-2021-22923: curl sent them to every mirror.
    async with MirrorLab() as lab:
        mirror = lab.mirror(CONTENT)
        url = published(lab, described(CONTENT, mirror))
        with trio.fail_after(90):
            await fetched(url, tmp_path / "a.img", headers=["Authorization: Bearer s3cret"])
        assert (tmp_path / "a.img").read_bytes() == CONTENT
        assert any(b"s3cret" in head for head in lab[url].heads)
        assert lab[mirror].heads
        assert not any(b"s3cret" in head for head in lab[mirror].heads)


async def test_a_document_names_no_file_of_this_host_and_no_other_scheme(tmp_path: Path):
    async with MirrorLab() as lab:
        honest = described(CONTENT, lab.mirror(CONTENT))
        text = write.make(honest).replace(
            "  </file>",
            "".join(
                f"    <url>{url}</url>\n"
                for url in ("file:///etc/passwd", "ftp://h.example/a", "gopher://h.example/a")
            )
            + "  </file>",
        )
        with trio.fail_after(90):
            done = await fetched(published(lab, text), tmp_path / "a.img")
        assert done.manifest.mirrors == tuple(
            Mirror(m.url, m.priority, named_from=found.named_from)
            for m, found in zip(honest.mirrors, done.manifest.mirrors, strict=True)
        )
        redirecting = described(CONTENT, lab.mirror(CONTENT, fault="redirect_file"))
        with trio.fail_after(90), pytest.raises(errors.SourceError):
            await fetched(published(lab, redirecting), tmp_path / "b.img")
        assert not (tmp_path / "b.img").exists()


@pytest.mark.parametrize("name", ["../a", "/etc/cron.d/a", "a/../../b", "a\\b", "a&#10;b", ""])
def test_a_document_names_no_place_outside_of_its_folder(name: str):
    text = write.make(described(CONTENT, "http://h.example/a")).replace('"a.img"', f'"{name}"')
    with pytest.raises(errors.DocumentError, match=r"file name|without a name"):
        read.parse(text.encode(), base_url=None)


@pytest.mark.parametrize(
    "inside",
    [
        '<!DOCTYPE metalink [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE metalink SYSTEM "http://evil.example/x.dtd">',
        '<!DOCTYPE m [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>',
    ],
)
def test_the_xml_reader_fetches_nothing_and_expands_nothing(inside: str):
    first, rest = write.make(described(CONTENT, "http://h.example/a")).split("\n", 1)
    with pytest.raises(errors.DocumentError, match="document type") as caught:
        read.parse(f"{first}\n{inside}\n{rest}".encode(), base_url=None)
    assert "root:" not in str(caught.value)


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ("<a>" * 100 + "</a>" * 100, "nested more than"),
        ("<a/>" * (limits.MAX_ELEMENTS + 1), "more than 800000 elements"),
        ("x" * limits.MAX_DOCUMENT_BYTES, "is not read"),
    ],
)
def test_the_xml_reader_takes_no_document_that_is_made_to_exhaust_it(inside: str, reason: str):
    text = write.make(described(CONTENT, "http://h.example/a"))
    with pytest.raises(errors.DocumentError, match=reason):
        read.parse(text.replace("</metalink>", f"{inside}</metalink>").encode(), base_url=None)


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "10.255.255.1", "[::ffff:192.168.0.1]", "[fe80::1]"]
)
async def test_a_document_from_elsewhere_names_no_address_that_only_this_host_reaches(
    tmp_path: Path, host: str
):
    async with MirrorLab() as lab:
        honest = lab.mirror(CONTENT)
        both = published(lab, described(CONTENT, f"http://{host}/a.img", honest))
        with trio.fail_after(90):
            done = await fetched(both, tmp_path / "a.img")
        refused, used = done.report.statistics.mirrors
        assert "named from elsewhere" in str(refused.last_error)
        assert (refused.bytes_received, used.bytes_received >= len(CONTENT)) == (0, True)
        alone = published(lab, described(CONTENT, f"http://{host}/a.img"))
        with trio.fail_after(90), pytest.raises(errors.SourceError, match="named from elsewhere"):
            await fetched(alone, tmp_path / "b.img")


async def test_a_small_file_costs_its_document_and_one_mirror(tmp_path: Path):
    # libzypp: four or five fresh connections for files that one would bring in no time.
    small = CONTENT[: 64 * KiB]
    async with MirrorLab() as lab:
        urls = [lab.mirror(small, latency=0.05) for _ in range(5)]
        address = published(lab, described(small, *urls, piece_length=None))
        with trio.fail_after(90):
            await fetched(address, tmp_path / "a.img")
        assert lab[address].requests <= 1
        assert sum(lab[url].requests for url in urls) <= 3
