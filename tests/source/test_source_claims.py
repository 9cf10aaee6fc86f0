"""What names claim, and the end of a fixed VHD."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from ddfs import errors, source
from ddfs.image.inspect import inspect_head
from ddfs.model import HEAD_LENGTH, ByteRange, ImageFormat, Manifest, Packing, PackingKind
from tests.source.source_web import CONTENT, Web, manifest

URL = "http://a.example/a"
DISK = CONTENT + bytes(512)
FOOTER = b"conectix" + bytes(40) + struct.pack(">QII", len(CONTENT), 0, 2) + bytes(448)


def called(name: str, packing: Packing | None = None) -> Manifest:
    return dataclasses.replace(manifest("a"), name=name, packing=packing)


@pytest.mark.parametrize(
    ("name", "claimed"),
    [
        ("a.qcow2", ImageFormat.QCOW2),
        ("d/a.ISO", ImageFormat.ISO),
        ("a.raw", ImageFormat.RAW),
        ("a.vhd", ImageFormat.VHD),
        ("a.vhdx", ImageFormat.VHDX),
        ("a.vmdk", ImageFormat.VMDK),
        ("a.raw.xz", ImageFormat.RAW),
        # Both raw disks and qcow2 images are called so.
        ("a.img", None),
        ("a.img.gz", None),
        ("image", None),
        ("a.bin", None),
    ],
)
def test_claims_of_names(name: str, claimed: ImageFormat | None):
    assert source.claimed_by_name(called(name)) is claimed


def test_in_an_archive_the_name_of_the_file_in_it_counts():
    packing = Packing(PackingKind.ZIP, member="disks/a.vmdk")
    assert source.claimed_by_name(called("a.iso.zip", packing)) is ImageFormat.VMDK


def test_the_refusal_says_how_to_overrule_the_name():
    with pytest.raises(errors.ImageError) as caught:
        inspect_head(CONTENT, size=len(CONTENT), claimed=ImageFormat.QCOW2)
    text = str(source.refused_by_name(called("a.qcow2"), ImageFormat.QCOW2, caught.value))
    assert text == (
        "the image is refused: it has no header of qcow2; the name a.qcow2 says qcow2: "
        "if the image is right, give what it is with --format"
    )


async def look(content: bytes, claimed: ImageFormat | None) -> tuple[bytes, Web]:
    web = Web(a=content)
    described = manifest("a", content=content)
    head = await source.read_head(described, web)
    web.requests.clear()
    return await source.read_tail(described, head, claimed, web), web


async def test_a_fixed_vhd_shows_itself_at_its_end():
    tail, web = await look(CONTENT + FOOTER, ImageFormat.VHD)
    assert (tail, web.requests) == (FOOTER, [("range", URL)])
    head = CONTENT[:HEAD_LENGTH]
    facts = inspect_head(head, size=len(DISK), claimed=ImageFormat.VHD, tail=tail)
    assert (facts.format, facts.virtual_size) == (ImageFormat.VHD, len(CONTENT))


async def test_what_only_is_called_a_vhd_is_refused_at_once():
    tail, _ = await look(DISK, ImageFormat.VHD)
    with pytest.raises(errors.ImageError, match="no header of vhd"):
        inspect_head(CONTENT[:HEAD_LENGTH], size=len(DISK), claimed=ImageFormat.VHD, tail=tail)


@pytest.mark.parametrize("claimed", [None, ImageFormat.RAW, ImageFormat.VHDX])
async def test_nothing_else_has_its_end_read(claimed: ImageFormat | None):
    tail, web = await look(CONTENT + FOOTER, claimed)
    assert (tail, web.requests) == (b"", [])


async def test_a_dynamic_vhd_shows_itself_at_its_start():
    tail, web = await look(FOOTER + CONTENT, ImageFormat.VHD)
    assert (tail, web.requests) == (b"", [])


def test_the_end_is_512_bytes():
    assert len(ByteRange(len(CONTENT), len(DISK))) == len(FOOTER) == 512
