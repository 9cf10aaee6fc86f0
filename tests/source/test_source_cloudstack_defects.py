"""The twelve defects of the metalinks of Apache CloudStack's direct download: a test each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import trio

from ddfs import errors, source
from ddfs.declaration import Declaration
from ddfs.metalink import read, write
from ddfs.model import HEAD_LENGTH, Digest, HashAlgorithm, KiB, Manifest, MiB
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.source.source_download import described, fetched, published
from tests.source.source_web import Web

CONTENT = bytes(range(256)) * (8 * KiB)
URL = "http://m.example/a"


def parsed(text: str) -> Manifest:
    return read.select(read.parse(text.encode(), base_url=None), None)


def version_3(resources: str, verification: str = "", size: int = len(CONTENT)) -> str:
    return (
        '<metalink version="3.0" xmlns="http://www.metalinker.org/"><files><file name="a.img">'
        f"<size>{size}</size><verification>{verification}</verification>"
        f"<resources>{resources}</resources></file></files></metalink>"
    )


def test_1_elements_are_found_by_namespace_and_not_by_tag():
    text = write.make(described(CONTENT, URL))
    prefixed = text.replace("<", "<ml:").replace("<ml:/", "</ml:").replace("<ml:?", "<?")
    prefixed = prefixed.replace("xmlns=", "xmlns:ml=")
    assert parsed(prefixed) == parsed(text)
    foreign = text.replace(
        "  </file>", f'    <x xmlns="urn:x"><url>{URL}-evil</url><hash>00</hash></x>\n  </file>'
    )
    assert parsed(foreign) == parsed(text)


def test_2_preference_and_location_are_read():
    text = version_3(
        '<url type="http" preference="10">http://ten.example/a</url>'
        '<url type="http" preference="90">http://ninety.example/a</url>'
        '<url type="http" location="de" preference="1">http://near.example/a</url>'
    )
    found = read.select(read.parse(text.encode(), base_url=None), None)
    assert [m.url.split(".")[0] for m in found.mirrors] == [
        "http://ninety",
        "http://ten",
        "http://near",
    ]
    near = read.select(read.parse(text.encode(), base_url=None, location="de"), None)
    assert near.mirrors[0].location == "de"


def test_3_several_files_are_not_mixed():
    one, other = described(CONTENT, URL), described(CONTENT[::-1], f"{URL}-other")
    other = dataclasses.replace(other, name="b.img")
    text = write.make(one).replace("</metalink>\n", "") + "\n".join(
        write.make(other).split("\n")[3:]
    )
    document = read.parse(text.encode(), base_url=None)
    with pytest.raises(errors.DocumentError, match=r"say which: 'a\.img', 'b\.img'"):
        read.select(document, None)
    assert read.select(document, "b.img") == other


async def test_4_the_strongest_hash_decides_every_time(tmp_path: Path):
    async with MirrorLab() as lab:
        good = described(CONTENT, lab.mirror(CONTENT), piece_length=None)
        assert parsed(write.make(good)).digest == good.digests[0]
        weak = Digest(HashAlgorithm.MD5, "0" * 32)
        strong = Digest(HashAlgorithm.SHA256, "0" * 64)
        beside_strong = dataclasses.replace(good, digests=(good.digests[0], weak))
        beside_weak = dataclasses.replace(good, digests=(strong, good.digests[1]))
        for number in range(3):
            with trio.fail_after(90):
                await fetched(published(lab, beside_strong), tmp_path / f"good{number}")
            with trio.fail_after(90), pytest.raises(errors.ChecksumError, match="sha-256"):
                await fetched(published(lab, beside_weak), tmp_path / f"bad{number}")


def test_5_piece_hashes_are_no_hashes_of_the_file():
    described_here = described(CONTENT, URL)
    found = parsed(write.make(described_here))
    assert found.digests == described_here.digests
    assert found.pieces == described_here.pieces


def test_6_hashes_in_capitals_are_hashes():
    text = write.make(described(CONTENT, URL))
    digest = described(CONTENT, URL).digests[0].hexdigest
    assert parsed(text.replace(digest, digest.upper())) == parsed(text)


@pytest.mark.parametrize("name", ["sha256", "sha-256", "SHA256", "SHA-256"])
def test_7_sha256_has_several_names(name: str):
    digest = described(CONTENT, URL).digests[0]
    text = version_3(f"<url>{URL}</url>", f'<hash type="{name}">{digest.hexdigest}</hash>')
    assert parsed(text).digests == (digest,)
    assert Digest.parse(f"{{{name}}}{digest.hexdigest}") == digest


async def test_8_all_mirrors_are_used_at_once(tmp_path: Path):
    large = CONTENT * 8
    async with MirrorLab() as lab:
        urls = [lab.mirror(large, rate=8 * MiB) for _ in range(3)]
        with trio.fail_after(90):
            await fetched(published(lab, described(large, *urls)), tmp_path / "a.img")
        assert all(lab[url].bytes_sent > len(large) // 20 for url in urls)


def test_9_torrents_and_further_metalinks_are_not_taken_for_the_file():
    text = version_3(
        '<url type="bittorrent">http://m.example/a.torrent</url>'
        "<url>http://m.example/b.torrent</url>"
        f'<url type="http">{URL}</url>'
    )
    assert [mirror.url for mirror in parsed(text).mirrors] == [URL]
    further = write.make(described(CONTENT, URL)).replace(
        '<url priority="1">http://m.example/a</url>',
        '<metaurl mediatype="application/metalink4+xml">http://m.example/b.meta4</metaurl>',
    )
    with pytest.raises(errors.DocumentError, match=r"1 further metalink, not followed"):
        parsed(further)


async def test_10_a_corrupt_first_mirror_is_left_for_the_next(tmp_path: Path):
    async with MirrorLab() as lab:
        urls = [lab.mirror(CONTENT, fault="corrupt_all"), lab.mirror(CONTENT)]
        for piece_length in (256 * KiB, None):
            manifest = described(CONTENT, *urls, piece_length=piece_length)
            path = tmp_path / str(piece_length)
            with trio.fail_after(90):
                await fetched(published(lab, manifest), path)
            assert path.read_bytes() == CONTENT


async def test_11_a_dead_mirror_does_not_keep_a_template_from_being_registered():
    web = Web(good=CONTENT)
    manifest = described(CONTENT, "http://dead.example/a", "http://good.example/a")
    web.files["http://o.example/a.meta4"] = write.make(manifest).encode()
    declared = Declaration("http://o.example/a.meta4")
    found = await source.resolve(declared, documents=web, location=None)
    head = await source.read_head(found, web)
    assert (head.data, head.verified) == (CONTENT[:HEAD_LENGTH], True)
    assert [failure.url for failure in head.failures] == ["http://dead.example/a"]


async def test_12_sizes_are_those_of_the_image_and_not_of_the_document(tmp_path: Path):
    async with MirrorLab() as lab:
        wrong, good = lab.mirror(CONTENT, fault="wrong_size"), lab.mirror(CONTENT)
        with trio.fail_after(90):
            done = await fetched(published(lab, described(CONTENT, wrong, good)), tmp_path / "a")
        assert (done.manifest.size, done.report.size) == (len(CONTENT), len(CONTENT))
        # A mirror of another size is not asked for more than it took to see that.
        assert lab[wrong].bytes_sent < len(CONTENT) // 2


async def test_registering_costs_the_document_and_the_pieces_under_the_head():
    async def cost(*, has_size: bool) -> list[tuple[str, str]]:
        web = Web(a=CONTENT, b=CONTENT, c=CONTENT)
        manifest = described(CONTENT, *(f"http://{host}.example/a" for host in "abc"))
        stated = dataclasses.replace(manifest, size_is_stated=has_size)
        web.files["http://o.example/a.meta4"] = write.make(stated).encode()
        declared = Declaration("http://o.example/a.meta4")
        found = await source.resolve(declared, documents=web, location=None)
        assert (await source.read_head(found, web)).verified
        return sorted(request for request in web.requests if request[0] != "document")

    assert await cost(has_size=True) == [("range", "http://a.example/a")]
    assert await cost(has_size=False) == [
        ("range", "http://a.example/a"),
        ("size", "http://a.example/a"),
        ("size", "http://b.example/a"),
    ]
