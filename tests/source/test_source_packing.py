"""What registering learns of a packed image, and with how few requests."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import io
import lzma
import random
import zipfile

import pytest
from test_source_metalink import Web

from ddfs import errors, source
from ddfs.declaration import Declaration
from ddfs.image import packed
from ddfs.model import HEAD_LENGTH, Digest, HashAlgorithm, Manifest, MiB, PackingKind

IMAGE = random.Random(5).randbytes(2 * MiB)


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, IMAGE)
    return file.getvalue()


async def resolved(data: bytes, name: str, **declared: object) -> tuple[Web, Manifest]:
    web, url = Web(), f"http://a.example/{name}"
    web.files[url] = data
    checksum = Digest(HashAlgorithm.SHA256, hashlib.sha256(data).hexdigest())
    declaration = Declaration(url, checksum=checksum, **declared)
    return web, await source.resolve(declaration, documents=web, location=None)


@pytest.mark.parametrize(
    ("name", "data", "knows_size", "requests"),
    [
        ("a.img.gz", gzip.compress(IMAGE), False, 2),
        ("a.img.bz2", bz2.compress(IMAGE), False, 4),
        ("a.img.xz", lzma.compress(IMAGE), True, 3),
        ("a.zip", zipped("a.img"), True, 3),
    ],
)
async def test_a_few_requests_tell_the_head_and_where_possible_the_size(
    name: str, data: bytes, knows_size: bool, requests: int
) -> None:
    web, manifest = await resolved(data, name)
    assert manifest.packing is not None
    web.requests.clear()
    head, manifest = await source.read_packed_head(manifest, web, packed.look)
    assert head.data == IMAGE[:HEAD_LENGTH]
    assert not head.verified
    assert manifest.packing is not None
    assert manifest.packing.size == (len(IMAGE) if knows_size else None)
    assert len(web.requests) <= requests, web.requests


async def test_one_of_several_files_in_a_zip_is_chosen_by_its_name() -> None:
    data = zipped("a.img", "b.img")
    web, manifest = await resolved(data, "both.zip")
    with pytest.raises(errors.ImageError, match="choose one with --file"):
        await source.read_packed_head(manifest, web, packed.look)
    web, chosen = await resolved(data, "both.zip", file="b.img")
    assert (await source.read_packed_head(chosen, web, packed.look))[0].data == IMAGE[:HEAD_LENGTH]
    assert chosen.content_id != manifest.content_id
    assert chosen.download_id == manifest.download_id


async def test_unverified_files_in_one_zip_are_different_contents() -> None:
    url = "http://a.example/both.zip"
    web = Web()
    web.files[url] = zipped("a.img", "b.img")
    ids = set()
    for member in ("a.img", "b.img", "a.img"):
        declaration = Declaration(url, unverified=True, file=member)
        manifest = await source.resolve(declaration, documents=web, location=None)
        assert manifest.unverified_id == manifest.content_id
        ids.add(manifest.content_id)
    assert len(ids) == 2


async def test_what_the_name_says_has_to_be_so() -> None:
    web, manifest = await resolved(IMAGE, "a.img.xz")
    with pytest.raises(errors.ImageError, match="does not start like a xz file"):
        await source.read_packed_head(manifest, web, packed.look)


async def test_what_is_declared_in_vain_is_said() -> None:
    checksum = Digest(HashAlgorithm.SHA256, "0" * 64)
    with pytest.raises(errors.RequestError, match="not called like a packed"):
        await resolved(IMAGE, "a.img", unpacked_checksum=checksum)
    with pytest.raises(errors.RequestError, match="size is of what comes out"):
        await resolved(IMAGE, "a.img", size=100)
    with pytest.raises(errors.RequestError, match="tar archive"):
        await resolved(IMAGE, "a.tar.gz")


async def test_the_declared_size_stands() -> None:
    web, manifest = await resolved(gzip.compress(IMAGE), "a.img.gz", size=len(IMAGE))
    _, manifest = await source.read_packed_head(manifest, web, packed.look)
    assert manifest.packing is not None
    assert manifest.packing.kind is PackingKind.GZIP
    assert manifest.published.size == len(IMAGE)


async def test_a_declared_size_that_the_index_denies_is_refused_at_once() -> None:
    web, manifest = await resolved(lzma.compress(IMAGE), "a.img.xz", size=len(IMAGE) - 1)
    with pytest.raises(errors.ImageError, match=f"unpacks to {len(IMAGE)} bytes, and not to"):
        await source.read_packed_head(manifest, web, packed.look)


async def test_mirrors_that_send_nonsense_for_ever_are_given_up() -> None:
    web, manifest = await resolved(lzma.compress(IMAGE), "a.img.xz")
    [url] = list(web.files)

    def endless(packing: object, size: int, read_at: object) -> None:
        for at in range(0, size, 700_000):
            read_at(at, 1)  # type: ignore[operator]
        read_at(size - 1, 1)  # type: ignore[operator]
        raise AssertionError("not that far")

    web.files[url] = bytes(40 * MiB)
    grown = Manifest("a.img.xz", 40 * MiB, manifest.digests, None, manifest.mirrors, False)
    grown = dataclasses.replace(grown, packing=manifest.packing)
    with pytest.raises(errors.DocumentError, match="a few parts"):
        await source.read_packed_head(grown, web, endless)
