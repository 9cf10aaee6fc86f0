"""From an address to a manifest and a head, against a web in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ddfs import errors, source
from ddfs.declaration import Declaration
from ddfs.metalink import limits
from ddfs.model import (
    HEAD_LENGTH,
    ByteRange,
    Digest,
    HashAlgorithm,
    KiB,
    Manifest,
    MiB,
    Mirror,
)
from tests.source.source_web import CONTENT, MD5, OTHER, SHA256, Web, manifest, text

META = "http://origin.example/d/a.img.meta4"


async def resolve(
    address: str, web: Web, *, checksum: Digest | None = None, file: str | None = None
) -> Manifest:
    declared = Declaration(address, checksum=checksum, file=file)
    return await source.resolve(declared, documents=web, location="de")


async def test_a_metalink_by_its_suffix_costs_one_request():
    web = Web()
    described = manifest("a", "b", piece_length=64 * KiB)
    web.files[META] = text(described)
    assert await resolve(META, web) == described
    assert web.requests == [("document", META)]


@pytest.mark.parametrize("url", ["http://x.example/a.METALINK?y", "HTTP://X.example:80/a.meta4#z"])
async def test_suffixes_are_read_from_the_path_alone(url: str):
    web = Web()
    web.files["http://x.example/a.METALINK?y"] = text(manifest("a"))
    web.files["http://x.example/a.meta4"] = text(manifest("a"))
    assert await resolve(url, web) == manifest("a")


async def test_relative_addresses_are_relative_to_where_the_document_was_found():
    web = Web()
    web.redirects[META] = "https://cdn.example/x/a.meta4"
    relative = text(manifest("a")).replace(b"http://a.example/a", b"../a")
    web.files["https://cdn.example/x/a.meta4"] = relative
    assert (await resolve(META, web)).mirrors == (Mirror("https://cdn.example/a", 1),)


async def test_the_preferred_location_is_passed_on():
    web = Web()
    mirrors = (Mirror("http://us.example/a", 1, "us"), Mirror("http://de.example/a", 1, "de"))
    web.files[META] = text(dataclasses.replace(manifest(), mirrors=mirrors))
    assert (await resolve(META, web)).mirrors == mirrors[::-1]


async def test_a_metalink_is_known_by_its_first_bytes():
    web = Web()
    url = "http://mm.example/metalink?path=x.iso"
    # Comments make it longer than what is read to find out.
    web.files[url] = text(manifest("a")).replace(b"</file>", b"</file>" + b"<!-- x -->" * 500)
    assert await resolve(url, web) == manifest("a")
    assert web.requests == [("range", url), ("document", url)]


@pytest.mark.parametrize("kind", [None, "application/metalink+xml; charset=utf-8", "text/plain"])
async def test_a_generated_metalink_whose_server_knows_no_ranges(kind: str | None):
    web = Web()
    url = "http://mm.example/metalink?path=x.iso"
    web.files[url] = text(manifest("a"))
    web.without_ranges.add(url)
    if kind:
        web.types[url] = kind
    assert await resolve(url, web) == manifest("a")
    assert web.requests == [("range", url), ("document", url)]


async def test_what_calls_itself_a_metalink_is_judged_as_one():
    web = Web()
    url = "http://mm.example/metalink"
    web.files[url] = b"<html>busy</html>"
    web.types[url] = "application/metalink4+xml"
    with pytest.raises(errors.DocumentError, match=r"^http://mm.example/metalink: this is a web"):
        await resolve(url, web)


async def test_an_image_with_a_checksum():
    web = Web()
    url = "http://i.example/d/de%20bian.qcow2"
    web.files[url] = CONTENT
    assert await resolve(url, web, checksum=SHA256) == Manifest(
        "de bian.qcow2", len(CONTENT), (SHA256,), None, (Mirror(url),), size_is_stated=False
    )
    assert web.requests == [("size", url)]


async def test_an_image_whose_address_says_nothing_is_not_downloaded():
    web = Web()
    url = "http://i.example/download?id=7"
    web.files[url] = CONTENT
    found = await resolve(url, web, checksum=SHA256)
    assert (found.name, found.size) == ("download", len(CONTENT))
    assert web.requests == [("range", url), ("size", url)]


async def test_an_image_from_a_server_that_knows_no_ranges(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_DOCUMENT_BYTES", len(CONTENT) - 1)
    web = Web()
    url = "http://i.example/"
    web.files[url] = CONTENT
    web.without_ranges.add(url)
    assert (await resolve(url, web, checksum=SHA256)).name == "image"
    assert web.requests == [("range", url), ("document", url), ("size", url)]


async def test_an_image_that_nothing_verifies():
    web = Web()
    web.files["http://i.example/a.qcow2"] = CONTENT
    with pytest.raises(errors.RequestError, match=r"give --checksum ALG:HEX or .*--unverified"):
        await resolve("http://i.example/a.qcow2", web)


async def test_a_dead_address_is_the_mirrors_error():
    with pytest.raises(errors.MirrorError, match="404 Not Found"):
        await resolve("http://i.example/x", Web(), checksum=SHA256)
    with pytest.raises(errors.MirrorError, match="404 Not Found"):
        await resolve(META, Web())


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ftp://i.example/a.meta4", "ftp is not supported"),
        ("file:///no/such/a.meta4", "No such file"),
        ("file://other/a.meta4", "a file of this host"),
        ("http:///a.meta4", "it has no valid host name"),
        ("", "cannot be read"),
        ("/no/such/file.meta4", "No such file"),
        ("a\0b", "cannot be read"),
        ("/", "Is a directory|not a regular file"),
    ],
)
async def test_requests_that_cannot_be(address: str, reason: str):
    web = Web()
    with pytest.raises(errors.RequestError, match=reason):
        await resolve(address, web)
    assert web.requests == []


async def test_a_local_metalink(tmp_path: Path):
    path = tmp_path / "a.meta4"
    path.write_bytes(text(manifest("a")))
    assert await resolve(str(path), Web()) == manifest("a")
    unnamed = path.rename(tmp_path / "document")
    assert await resolve(str(unnamed), Web()) == manifest("a")


async def test_a_local_image_is_a_mirror_of_itself(tmp_path: Path):
    path = tmp_path / "a b.qcow2"
    path.write_bytes(CONTENT)
    web = Web()
    web.files[path.as_uri()] = CONTENT
    for address in (str(path), path.as_uri()):
        manifest = await resolve(address, web, checksum=SHA256)
        assert [mirror.url for mirror in manifest.mirrors] == [path.as_uri()]
        assert (manifest.size, manifest.name) == (len(CONTENT), "a b.qcow2")
        with pytest.raises(errors.RequestError, match="needs a hash"):
            await resolve(address, web)
    os.mkfifo(tmp_path / "fifo.meta4")
    with pytest.raises(errors.RequestError, match="not a regular file"):
        await resolve(str(tmp_path / "fifo.meta4"), Web())


async def test_a_local_document_beyond_the_cap(tmp_path: Path):
    path = tmp_path / "a.meta4"
    with path.open("wb") as file:
        file.write(b"<metalink")
        file.truncate(limits.MAX_DOCUMENT_BYTES + 10)
    with pytest.raises(errors.DocumentError, match="is not read"):
        await resolve(str(path), Web())


async def test_a_file_is_chosen_by_name():
    web = Web()
    one, other = manifest("a"), dataclasses.replace(manifest("b"), name="b.img")
    both = text(one).replace(b"</metalink>", b"") + text(other).partition(b"</generator>\n")[2]
    web.files[META] = both
    assert await resolve(META, web, file="b.img") == other
    with pytest.raises(errors.DocumentError, match=rf"^{META}: it has 2 files, say which: 'a.img'"):
        await resolve(META, web)
    with pytest.raises(errors.RequestError, match="a file can be chosen in a metalink"):
        await resolve("http://i.example/a.iso", web, checksum=SHA256, file="b.img")


async def test_a_checksum_agrees_is_added_or_contradicts():
    web = Web()
    web.files[META] = text(manifest("a"))
    assert await resolve(META, web, checksum=SHA256) == manifest("a")
    assert (await resolve(META, web, checksum=MD5)).digests == (SHA256, MD5)
    with pytest.raises(
        errors.DocumentError, match=f"it says {SHA256} for 'a.img', --checksum says"
    ):
        await resolve(META, web, checksum=OTHER)


async def test_nothing_to_verify_by_is_refused_unless_a_checksum_is_given():
    web = Web()
    web.files[META] = text(manifest("a", digests=()))
    with pytest.raises(errors.DocumentError, match=rf"^{META}: 'a.img' has no usable hash"):
        await resolve(META, web)
    assert (await resolve(META, web, checksum=SHA256)).digest == SHA256


@pytest.mark.parametrize(
    ("described", "note"),
    [
        (manifest("a", digests=(MD5,)), "only md5 to verify it by"),
        (manifest("a", digests=(), piece_length=KiB), "only sha-1 piece hashes to verify it by"),
    ],
)
async def test_weak_hashes_are_accepted_with_a_note(described: Manifest, note: str):
    web = Web()
    web.files[META] = text(described)
    found = await resolve(META, web)
    assert dataclasses.replace(found, notes=()) == described
    assert found.notes[0].startswith(note)


async def test_warnings_of_the_document_become_notes():
    web = Web()
    web.files[META] = b"\n" + text(manifest("a"))
    assert (await resolve(META, web)).notes == ("blanks before the XML declaration",)


async def test_without_a_size_two_mirrors_must_agree():
    web = Web(a=CONTENT, b=CONTENT, c=CONTENT)
    web.files[META] = text(manifest("a", "b", "c", has_size=False))
    found = await resolve(META, web)
    assert (found.size, found.size_is_stated) == (len(CONTENT), False)
    assert not found.is_readable_early
    # The first two, at once.
    asked = [("size", "http://a.example/a"), ("size", "http://b.example/a")]
    assert sorted(web.requests[1:]) == asked


async def test_a_third_mirror_decides_between_two_sizes():
    web = Web(a=b"x", c=CONTENT, d=CONTENT)
    web.files[META] = text(manifest("a", "dead", "c", "d", has_size=False))
    assert (await resolve(META, web)).size == len(CONTENT)


async def test_sizes_that_never_agree():
    web = Web(a=b"x", b=b"xx")
    web.files[META] = text(manifest("a", "dead", "b", has_size=False))
    with pytest.raises(errors.MirrorsExhaustedError, match="no two mirrors agree") as caught:
        await resolve(META, web)
    assert [str(failure) for failure in caught.value.failures] == [
        "http://a.example/a: says 1 bytes",
        "http://dead.example/a: 404 Not Found",
        "http://b.example/a: says 2 bytes",
    ]


async def test_one_answer_of_two_mirrors_is_not_enough():
    web = Web(a=CONTENT)
    web.files[META] = text(manifest("a", "dead", has_size=False))
    with pytest.raises(errors.MirrorsExhaustedError, match="no two mirrors agree"):
        await resolve(META, web)


async def test_only_so_many_mirrors_are_asked():
    web = Web()
    web.files[META] = text(manifest(*(f"dead{n}" for n in range(30)), has_size=False))
    with pytest.raises(errors.MirrorsExhaustedError):
        await resolve(META, web)
    assert len(web.requests) == 1 + 8


async def test_the_only_mirrors_word_is_taken():
    web = Web(a=CONTENT)
    web.files[META] = text(manifest("a", has_size=False))
    assert (await resolve(META, web)).size == len(CONTENT)
    del web.files["http://a.example/a"]
    with pytest.raises(errors.MirrorsExhaustedError, match="the only mirror did not say it"):
        await resolve(META, web)


async def test_pieces_that_do_not_fit_the_mirrors_size():
    web = Web(a=CONTENT[:1000])
    web.files[META] = text(manifest("a", piece_length=KiB, has_size=False))
    found = await resolve(META, web)
    assert found.pieces is None
    assert found.notes == (
        "256 piece hashes do not fit the 1000 bytes that mirrors have, and were passed over",
    )
    web.files[META] = text(manifest("a", piece_length=KiB, has_size=False, digests=()))
    with pytest.raises(errors.DocumentError, match="do not fit the 1000 bytes"):
        await resolve(META, web)


@pytest.mark.parametrize("piece_length", [1, 1000, 40 * KiB, 64 * KiB, 100 * KiB, 8 * MiB])
async def test_a_head_under_pieces_is_verified(piece_length: int):
    content = CONTENT[:500] if piece_length == 1 else CONTENT
    web = Web(a=content, b=content)
    head = await source.read_head(
        manifest("a", "b", content=content, piece_length=piece_length), web
    )
    assert head == source.Head(content[:HEAD_LENGTH], verified=True)
    assert web.requests == [("range", "http://a.example/a")]


async def test_pieces_too_long_leave_the_head_unverified():
    content = bytes(9 * MiB)
    web = Web(a=content)
    head = await source.read_head(manifest("a", content=content, piece_length=8 * MiB + 1), web)
    assert head == source.Head(bytes(HEAD_LENGTH), verified=False)


async def test_a_head_without_pieces_is_unverified():
    head = await source.read_head(manifest("dead", "a"), Web(a=CONTENT))
    assert (head.data, head.verified) == (CONTENT[:HEAD_LENGTH], False)
    assert [failure.url for failure in head.failures] == ["http://dead.example/a"]


@pytest.mark.parametrize("length", [1, HEAD_LENGTH])
async def test_a_small_file_is_verified_by_its_hash(length: int):
    content = CONTENT[:length]
    web = Web(liar=b"\xff" * length, a=content)
    head = await source.read_head(manifest("liar", "a", content=content), web)
    assert (head.data, head.verified) == (content, True)
    (failure,) = head.failures
    assert failure.url == "http://liar.example/a"
    assert "its file does not have sha-256:" in failure.message


async def test_a_small_file_must_have_every_hash():
    content = b"abc"
    right = Digest(HashAlgorithm.SHA256, hashlib.sha256(content).hexdigest())
    described = manifest("a", content=content, digests=(right, MD5))
    with pytest.raises(errors.MirrorsExhaustedError, match="does not have md5:"):
        await source.read_head(described, Web(a=content))


async def test_a_liar_is_blamed_and_only_what_is_missing_is_asked_again():
    wrong = CONTENT[:40_000] + b"\0" + CONTENT[40_001:]
    asked: list[ByteRange] = []

    class Recording(Web):
        async def read_range(self, url: str, wanted: ByteRange, *, size: int | None) -> bytes:
            asked.append(wanted)
            return await super().read_range(url, wanted, size=size)

    web = Recording(liar=wrong, short=CONTENT[:-1], a=CONTENT)
    described = manifest("liar", "short", "a", piece_length=16 * KiB)
    head = await source.read_head(described, web)
    assert head.data == CONTENT[:HEAD_LENGTH]
    assert head.verified
    assert [str(failure) for failure in head.failures] == [
        "http://liar.example/a: wrong bytes in piece 2",
        "http://short.example/a: it has another size",
    ]
    first, again = ByteRange(0, 64 * KiB), ByteRange(32 * KiB, 48 * KiB)
    assert asked == [first, again, again]


class Sluggish(Web):
    """Some hosts take their time, in seconds, for every range and size."""

    def __init__(self, seconds: dict[str, float], **files: bytes) -> None:
        super().__init__(**files)
        self._seconds = {f"http://{host}.example/a": value for host, value in seconds.items()}

    async def size_of(self, url: str) -> int:
        await trio.sleep(self._seconds.get(url, 0.0))
        return await super().size_of(url)

    async def read_range(self, url: str, wanted: ByteRange, *, size: int | None) -> bytes:
        await trio.sleep(self._seconds.get(url, 0.0))
        return await super().read_range(url, wanted, size=size)


@pytest.mark.parametrize("piece_length", [None, 16 * KiB])
async def test_silent_mirrors_are_passed_over(piece_length: int | None, autojump_clock: MockClock):
    hosts = [f"silent{number}" for number in range(10)]
    web = Sluggish(dict.fromkeys(hosts, math.inf), good=CONTENT)
    began = trio.current_time()
    head = await source.read_head(manifest(*hosts, "good", piece_length=piece_length), web)
    assert head.data == CONTENT[:HEAD_LENGTH]
    assert trio.current_time() - began < 60.0


async def test_a_slow_mirror_has_another_turn_without_haste(autojump_clock: MockClock):
    web = Sluggish({"slow": 30.0, "liar": 1.0}, slow=CONTENT, liar=b"\0" * len(CONTENT))
    head = await source.read_head(manifest("slow", "liar", piece_length=16 * KiB), web)
    assert (head.data, head.verified) == (CONTENT[:HEAD_LENGTH], True)
    assert [failure.url for failure in head.failures] == ["http://liar.example/a"]


@pytest.mark.parametrize(
    "described",
    [
        manifest("liar", "dead", piece_length=64 * KiB),
        manifest("liar", "dead", content=CONTENT[:100]),
    ],
)
async def test_no_mirror_gives_the_head(described: Manifest):
    assert described.size is not None
    web = Web(liar=bytes(described.size))
    with pytest.raises(
        errors.MirrorsExhaustedError, match="no mirror gave the first 64 KiB"
    ) as caught:
        await source.read_head(described, web)
    assert [failure.url for failure in caught.value.failures] == [
        "http://liar.example/a",
        "http://dead.example/a",
    ]


async def test_the_head_of_nothing():
    empty = manifest("a", content=b"")
    web = Web()
    assert await source.read_head(empty, web) == source.Head(b"", verified=True)
    assert web.requests == []
    with pytest.raises(errors.DocumentError, match="not the hash of nothing"):
        await source.read_head(dataclasses.replace(empty, digests=(OTHER,)), web)


async def test_no_head_before_the_size():
    with pytest.raises(ValueError, match="before the size is known"):
        await source.read_head(manifest("a", has_size=False), Web())


async def test_two_mirrors_of_one_server_do_not_agree_with_each_other():
    web = Web(a=b"x", b=CONTENT, c=CONTENT)
    web.files["http://a.example/again"] = b"x"
    described = manifest("a", "b", "c", has_size=False)
    again = Mirror("http://a.example:80/again", 1)
    with_again = dataclasses.replace(described, mirrors=(again, *described.mirrors))
    web.files[META] = text(with_again)
    assert (await resolve(META, web)).size == len(CONTENT)
    # A server that stands alone, under however many addresses, is the only one.
    alone = dataclasses.replace(described, mirrors=(described.mirrors[0], again))
    web.files[META] = text(alone)
    assert (await resolve(META, web)).size == 1


@pytest.mark.parametrize("silent", [1, 2, 6])
async def test_silent_mirrors_do_not_keep_the_size_to_themselves(
    silent: int, autojump_clock: MockClock
):
    hosts = [f"silent{number}" for number in range(silent)]
    web = Sluggish(dict.fromkeys(hosts, math.inf), good=CONTENT, fine=CONTENT)
    web.files[META] = text(manifest(*hosts, "good", "fine", has_size=False))
    began = trio.current_time()
    assert (await resolve(META, web)).size == len(CONTENT)
    assert trio.current_time() - began <= 4.0 * silent
