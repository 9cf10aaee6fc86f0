"""Unpacking: what comes out, what is refused, and what a packed file says beforehand."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfs import errors
from ddfs.image import decoders, packed, unpack
from ddfs.model import HEAD_LENGTH, Digest, HashAlgorithm, MiB, Packing, PackingKind


def zipped(data: bytes, name: str = "disk.img", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, data)
    return file.getvalue()


PACK: dict[PackingKind, Callable[[bytes], bytes]] = {
    PackingKind.GZIP: gzip.compress,
    PackingKind.BZIP2: bz2.compress,
    PackingKind.XZ: lzma.compress,
    PackingKind.ZSTD: zstd.compress,
    PackingKind.ZIP: zipped,
}
STREAMS = [kind for kind in PackingKind if kind is not PackingKind.ZIP]
IMAGE = random.Random(1).randbytes(300_000) + bytes(700_000) + b"the end"


def run(
    tmp_path: Path, data: bytes, packing: Packing, room: int = 2**40
) -> tuple[unpack.Unpacked, Path]:
    source, target = tmp_path / "packed", tmp_path / "unpacked"
    source.write_bytes(data)

    def need_room(length: int) -> None:
        if length > room:
            raise errors.StorageFullError("full")

    reading = os.open(source, os.O_RDONLY)
    writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        return unpack.unpack(
            reading, writing, packing, need_room=need_room, check=lambda: None
        ), target
    finally:
        os.close(reading)
        os.close(writing)


def look(data: bytes, packing: Packing) -> packed.PackedFacts:
    return packed.look(packing, len(data), lambda at, length: data[at : at + length])


@pytest.mark.parametrize("kind", PackingKind)
def test_every_kind_comes_out_whole(tmp_path: Path, kind: PackingKind) -> None:
    found, target = run(tmp_path, PACK[kind](IMAGE), Packing(kind))
    assert found == unpack.Unpacked(len(IMAGE), hashlib.sha256(IMAGE).hexdigest())
    assert target.read_bytes() == IMAGE


@pytest.mark.parametrize("kind", PackingKind)
def test_an_empty_file_comes_out_empty(tmp_path: Path, kind: PackingKind) -> None:
    found, target = run(tmp_path, PACK[kind](b""), Packing(kind))
    assert found.size == 0
    assert target.read_bytes() == b""


def test_blocks_of_zeros_are_holes(tmp_path: Path) -> None:
    image = b"start" + bytes(64 * MiB) + b"end"
    _, target = run(tmp_path, gzip.compress(image), Packing(PackingKind.GZIP))
    assert target.stat().st_size == len(image)
    assert target.stat().st_blocks * 512 < MiB
    _, target = run(tmp_path, gzip.compress(bytes(8 * MiB)), Packing(PackingKind.GZIP))
    assert (target.stat().st_size, target.stat().st_blocks) == (8 * MiB, 0)


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_one_behind_the_other_are_one_file(tmp_path: Path, kind: PackingKind) -> None:
    data = PACK[kind](IMAGE) + PACK[kind](b"") + PACK[kind](b"more")
    _, target = run(tmp_path, data, Packing(kind))
    assert target.read_bytes() == IMAGE + b"more"


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("garbage", [b"x", b"garbage behind it" * 9000, b"\0\0\0\0x"])
def test_what_follows_the_data_is_refused(
    tmp_path: Path, kind: PackingKind, garbage: bytes
) -> None:
    with pytest.raises(errors.ImageError, match="follows its data"):
        run(tmp_path, PACK[kind](IMAGE) + garbage, Packing(kind))


def test_padding_as_the_formats_have_it(tmp_path: Path) -> None:
    packed_gz = gzip.compress(IMAGE) + bytes(200_001)
    assert run(tmp_path, packed_gz, Packing(PackingKind.GZIP))[0].size == len(IMAGE)
    packed_xz = lzma.compress(IMAGE) + bytes(200_000) + lzma.compress(b"2") + bytes(4)
    assert run(tmp_path, packed_xz, Packing(PackingKind.XZ))[0].size == len(IMAGE) + 1
    with pytest.raises(errors.ImageError, match="follows its data"):
        run(tmp_path, lzma.compress(IMAGE) + bytes(3), Packing(PackingKind.XZ))


@pytest.mark.parametrize("kind", PackingKind)
def test_what_is_cut_off_is_refused(tmp_path: Path, kind: PackingKind) -> None:
    data = PACK[kind](IMAGE)
    for length in (0, 3, 20, len(data) // 2, len(data) - 1):
        with pytest.raises(errors.ImageError):
            run(tmp_path, data[:length], Packing(kind))


@pytest.mark.parametrize("kind", PackingKind)
def test_another_kind_is_refused(tmp_path: Path, kind: PackingKind) -> None:
    with pytest.raises(errors.ImageError, match=r"start like|zip archive"):
        run(tmp_path, IMAGE, Packing(kind))


def test_the_stated_size_bounds_what_comes_out(tmp_path: Path) -> None:
    bomb = bz2.compress(bytes(50 * MiB))
    with pytest.raises(errors.ImageError, match="more than the 1000000 bytes"):
        run(tmp_path, bomb, Packing(PackingKind.BZIP2, size=1_000_000))
    assert (tmp_path / "unpacked").stat().st_size <= 1_000_000
    with pytest.raises(errors.ImageError, match=r"unpacks to 52428800 bytes, not to the 52428801"):
        run(tmp_path, bomb, Packing(PackingKind.BZIP2, size=50 * MiB + 1))


def test_without_a_stated_size_a_ratio_does(tmp_path: Path) -> None:
    with pytest.raises(errors.ImageError, match="more than 1100 times"):
        run(tmp_path, bz2.compress(bytes(50 * MiB)), Packing(PackingKind.BZIP2))
    # As much as deflate can do is no bomb.
    run(tmp_path, gzip.compress(bytes(50 * MiB)), Packing(PackingKind.GZIP))


def test_room_is_asked_for_before_it_is_used(tmp_path: Path) -> None:
    data = gzip.compress(bytes(80 * MiB))
    with pytest.raises(errors.StorageFullError):
        run(tmp_path, data, Packing(PackingKind.GZIP), room=70 * MiB)
    with pytest.raises(errors.StorageFullError):
        run(tmp_path, data, Packing(PackingKind.GZIP, size=80 * MiB), room=80 * MiB - 1)
    run(tmp_path, data, Packing(PackingKind.GZIP, size=80 * MiB), room=80 * MiB)


def test_what_was_declared_about_the_result_has_to_hold(tmp_path: Path) -> None:
    data = gzip.compress(IMAGE)
    right = Digest(HashAlgorithm.SHA512, hashlib.sha512(IMAGE).hexdigest())
    wrong = Digest(HashAlgorithm.SHA512, "0" * 128)
    run(tmp_path, data, Packing(PackingKind.GZIP, checksum=right))
    with pytest.raises(errors.ChecksumError, match="not the declared sha-512:000"):
        run(tmp_path, data, Packing(PackingKind.GZIP, checksum=wrong))
    with pytest.raises(errors.ChecksumError, match="before"):
        run(tmp_path, data, Packing(PackingKind.GZIP, sha256="0" * 64))


def test_decoders_that_want_too_much_memory_are_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 * MiB}]
    # The size of the dictionary stands in the header; the encoder would take it as well.
    data = bytearray(lzma.compress(b"x", filters=[{**filters[0], "dict_size": 64 * MiB}]))
    at = data.index(b"\x21\x01", 12) + 2
    data[at] = 34  # 512 MiB, .xz file format section 5.3.1
    end = 12 + (data[12] + 1) * 4
    data[end - 4 : end] = struct.pack("<I", zlib_crc(bytes(data[12 : end - 4])))
    with pytest.raises(errors.ImageError, match=r"[Mm]emory"):
        run(tmp_path, bytes(data), Packing(PackingKind.XZ))
    # A window of 2 GiB: RFC 8878 section 3.1.1.1.2.
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00"
    with pytest.raises(errors.ImageError, match="zstd data is refused"):
        run(tmp_path, frame, Packing(PackingKind.ZSTD))


def zlib_crc(data: bytes) -> int:
    import zlib

    return zlib.crc32(data)


def test_a_zip_has_one_file_or_is_told_which(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("images")
        archive.writestr("images/disk.img", IMAGE)
        archive.writestr("../../etc/passwd", b"no")
    data = file.getvalue()
    with pytest.raises(errors.ImageError, match=r"2 files.*images/disk.img.*--file"):
        run(tmp_path, data, Packing(PackingKind.ZIP))
    with pytest.raises(errors.ImageError, match=r"no file 'disk\.img'"):
        run(tmp_path, data, Packing(PackingKind.ZIP, "disk.img"))
    _, target = run(tmp_path, data, Packing(PackingKind.ZIP, "images/disk.img"))
    assert target.read_bytes() == IMAGE
    _, target = run(tmp_path, data, Packing(PackingKind.ZIP, "../../etc/passwd"))
    assert target.read_bytes() == b"no"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "unpacked"]


def test_zips_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ImageError, match="method 12"):
        run(tmp_path, zipped(IMAGE, method=zipfile.ZIP_BZIP2), Packing(PackingKind.ZIP))
    encrypted = bytearray(zipped(IMAGE))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(errors.ImageError, match="encrypted"):
        run(tmp_path, bytes(encrypted), Packing(PackingKind.ZIP))
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(errors.ImageError, match="no file"):
        run(tmp_path, empty.getvalue(), Packing(PackingKind.ZIP))
    broken = bytearray(zipped(IMAGE, method=zipfile.ZIP_STORED))
    broken[1000] ^= 1
    with pytest.raises(errors.ImageError, match="CRC"):
        run(tmp_path, bytes(broken), Packing(PackingKind.ZIP))


def test_a_zip64_is_a_zip(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("disk.img", "w", force_zip64=True) as entry:
            entry.write(IMAGE)
    _, target = run(tmp_path, file.getvalue(), Packing(PackingKind.ZIP))
    assert target.read_bytes() == IMAGE


def test_a_huge_zip_directory_is_not_read() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(15_000):
            archive.writestr(f"{number:040}", b"")
    data = file.getvalue()
    with pytest.raises(errors.ImageError, match="directory is too large"):
        look(data, Packing(PackingKind.ZIP))


@pytest.mark.parametrize("kind", PackingKind)
def test_the_head_and_where_possible_the_size_are_known_before(kind: PackingKind) -> None:
    facts = look(PACK[kind](IMAGE), Packing(kind))
    assert facts.head == IMAGE[:HEAD_LENGTH]
    knows = kind in (PackingKind.XZ, PackingKind.ZSTD, PackingKind.ZIP)
    assert facts.size == (len(IMAGE) if knows else None)
    assert look(PACK[kind](b"tiny"), Packing(kind)) == packed.PackedFacts(b"tiny", 4)


def test_the_size_of_many_xz_streams_and_of_a_broken_index() -> None:
    data = lzma.compress(IMAGE) + bytes(8) + lzma.compress(IMAGE) + bytes(4)
    assert look(data, Packing(PackingKind.XZ)).size == 2 * len(IMAGE)
    whole = lzma.compress(IMAGE)
    for at in range(len(whole) - 40, len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 0x41
        assert look(bytes(broken), Packing(PackingKind.XZ)).size in (None, len(IMAGE))


def test_only_the_ends_of_a_packed_file_are_read() -> None:
    image = random.Random(2).randbytes(3 * MiB)
    for kind in PackingKind:
        data, asked = PACK[kind](image), 0

        def read_at(at: int, length: int, data: bytes = data) -> bytes:
            nonlocal asked
            asked += length
            return data[at : at + length]

        facts = packed.look(Packing(kind), len(data), read_at)
        assert facts.head == image[:HEAD_LENGTH], kind
        assert asked < 1.2 * MiB, kind


def test_a_tar_archive_in_it_is_no_image() -> None:
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("disk.img"))
    with pytest.raises(errors.ImageError, match="tar archive"):
        look(gzip.compress(file.getvalue()), Packing(PackingKind.GZIP))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("debian.qcow2.xz", PackingKind.XZ),
        ("a.IMG.GZ", PackingKind.GZIP),
        ("disk.zip", PackingKind.ZIP),
        ("disk.qcow2", None),
        (".xz", None),
        ("xz", None),
    ],
)
def test_names_say_how_a_file_is_packed(name: str, kind: PackingKind | None) -> None:
    assert PackingKind.of_name(name) is kind


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(list(PackingKind)),
    image=st.binary(max_size=5000),
    changes=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 6000),
)
def test_damage_gives_one_error_or_the_bytes(
    kind: PackingKind, image: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(PACK[kind](image))
    for at, value in changes:
        data[at % len(data)] = value
    data = data[: max(1, len(data) - cut % len(data))] if cut % 3 == 0 else data

    def read_at(at: int, length: int) -> bytes:
        return bytes(data[at : at + length])

    try:
        sum(len(part) for part in decoders.unpacked(kind, None, len(data), read_at))
        packed.look(Packing(kind), len(data), read_at)
    except errors.ImageError as error:
        refusal = str(error)
        assert "\n" not in refusal


@pytest.mark.parametrize("kind", STREAMS)
def test_whoever_wants_it_no_more_is_heard_where_nothing_comes_out(
    tmp_path: Path, kind: PackingKind
) -> None:
    source = tmp_path / "packed"
    source.write_bytes(PACK[kind](b"") * 20_000)
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise KeyboardInterrupt

    with source.open("rb") as reading, (tmp_path / "unpacked").open("wb") as writing:
        with pytest.raises(KeyboardInterrupt):
            unpack.unpack(
                reading.fileno(),
                writing.fileno(),
                Packing(kind),
                need_room=lambda _: None,
                check=check,
            )
    assert asked == 3
