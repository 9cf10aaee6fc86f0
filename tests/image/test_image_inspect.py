"""Real images of every format, and attacks on whoever believes a header."""

import os
import struct
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfs import errors
from ddfs.image.inspect import ImageFacts, inspect_file, inspect_head
from ddfs.model import HEAD_LENGTH, ImageFormat, MiB

SIZE = 3 * MiB

# Format, options and claimed format of images that qemu-img writes.
REAL = {
    "plain.qcow2": ("qcow2", "", ImageFormat.QCOW2),
    "old.qcow2": ("qcow2", "compat=0.10", ImageFormat.QCOW2),
    "extended.qcow2": ("qcow2", "extended_l2=on", ImageFormat.QCOW2),
    "zstd.qcow2": ("qcow2", "compression_type=zstd", ImageFormat.QCOW2),
    "small-clusters.qcow2": ("qcow2", "cluster_size=512", ImageFormat.QCOW2),
    "large-clusters.qcow2": ("qcow2", "cluster_size=2M", ImageFormat.QCOW2),
    "sparse.vmdk": ("vmdk", "", ImageFormat.VMDK),
    "stream.vmdk": ("vmdk", "subformat=streamOptimized", ImageFormat.VMDK),
    "dynamic.vhd": ("vpc", "force_size=on", ImageFormat.VHD),
    "fixed.vhd": ("vpc", "subformat=fixed,force_size=on", ImageFormat.VHD),
    "dynamic.vhdx": ("vhdx", "", ImageFormat.VHDX),
    "fixed.vhdx": ("vhdx", "subformat=fixed", ImageFormat.VHDX),
    "disk.img": ("raw", "", ImageFormat.RAW),
}


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one image for each line of REAL."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "source").write_bytes(os.urandom(SIZE))
    for name, (image_format, options, _) in REAL.items():
        more = ("-o", options) if options else ()
        source, target = folder / "source", folder / name
        qemu_img("convert", "-f", "raw", "-O", image_format, *more, source, target)
    return folder


def refusal(data: bytes, claimed: ImageFormat | None = None, size: int | None = None) -> str:
    with pytest.raises(errors.ImageError) as caught:
        inspect_head(data, size=len(data) if size is None else size, claimed=claimed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", REAL)
def test_whole_real_images(images: Path, name: str) -> None:
    expected = ImageFacts(REAL[name][2], SIZE)
    assert inspect_file(images / name, claimed=None) == expected
    assert inspect_file(images / name, claimed=expected.format) == expected


@pytest.mark.parametrize("name", REAL)
def test_heads_of_real_images(images: Path, name: str) -> None:
    path, claimed = images / name, REAL[name][2]
    facts = inspect_head(path.read_bytes()[:HEAD_LENGTH], size=path.stat().st_size, claimed=claimed)
    assert facts.format is claimed
    unknown = {"fixed.vhd", "dynamic.vhdx", "fixed.vhdx"}
    assert facts.virtual_size == (None if name in unknown else SIZE)
    assert bool(facts.notes) == (name in unknown)


@pytest.mark.parametrize("name", REAL)
def test_every_wrong_claim_is_refused(images: Path, name: str) -> None:
    for claimed in set(ImageFormat) - {REAL[name][2]}:
        if name == "fixed.vhd" and claimed is ImageFormat.RAW:
            continue  # nothing in its head says otherwise, and as raw it is harmless
        with pytest.raises(errors.ImageError):
            inspect_file(images / name, claimed=claimed)


def test_raw_with_a_qcow2_header_is_the_attack(images: Path) -> None:
    data = (images / "plain.qcow2").read_bytes()
    message = refusal(data[:HEAD_LENGTH], ImageFormat.RAW, len(data))
    assert message == "the image is refused: it is qcow2, not raw"
    assert "qcow2" in refusal(b"QFI\xfb", ImageFormat.RAW)


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_a_backing_file(tmp_path: Path, version: str) -> None:
    top = tmp_path / "top.qcow2"
    names = ("-b", "/etc/passwd", "-F", "raw", "-o", f"compat={version}")
    qemu_img("create", "-u", "-f", "qcow2", *names, top, "1M")
    assert "has a backing file" in refusal(top.read_bytes())
    with pytest.raises(errors.ImageError, match="qemu-img convert"):
        inspect_file(top, claimed=ImageFormat.QCOW2)


def test_an_external_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where qemu-img makes the data file
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "data_file=data.raw", top, "1M")
    assert "external data file" in refusal(top.read_bytes())


def test_a_vmdk_with_a_parent_which_oslo_takes_for_safe(images: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.vmdk"
    qemu_img("create", "-f", "vmdk", "-b", images / "sparse.vmdk", "-F", "vmdk", child)
    assert "parent image" in refusal(child.read_bytes())


def test_a_vmdk_descriptor_of_other_files(tmp_path: Path) -> None:
    flat = tmp_path / "flat.vmdk"
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", flat, "1M")
    for claimed in (ImageFormat.VMDK, ImageFormat.RAW, None):
        assert "vmdk" in refusal(flat.read_bytes(), claimed).lower()
    padded = flat.read_bytes().ljust(HEAD_LENGTH, b"\n")
    assert "names other files" in refusal(padded, ImageFormat.VMDK)


def test_a_vmdk_that_takes_its_disk_from_a_file_of_the_host(images: Path) -> None:
    data = bytearray((images / "sparse.vmdk").read_bytes())
    start = data.index(b'"sparse.vmdk"')
    data[start : start + 13] = b'"/etc/passwd"'
    assert "extent" in refusal(bytes(data))
    empty = bytearray((images / "sparse.vmdk").read_bytes())
    empty[12:20] = bytes(8)  # no sectors of its own: QEMU goes by the descriptor
    assert "0 sectors" in refusal(bytes(empty))


def with_footer(sparse: bytes) -> bytes:
    """A stream-optimised VMDK whose directory is said to stand in a footer."""
    data = bytearray(sparse)
    struct.pack_into("<Q", data, 56, 2**64 - 1)
    footer = bytearray(data[:512])
    struct.pack_into("<Q", footer, 56, 26)
    marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    return bytes(data + marker + footer + bytes(512))


def test_the_footer_of_a_vmdk(images: Path, tmp_path: Path) -> None:
    good = with_footer((images / "stream.vmdk").read_bytes())
    path = write(tmp_path / "good.vmdk", good)
    assert inspect_file(path, claimed=None) == ImageFacts(ImageFormat.VMDK, SIZE)
    head = inspect_head(good[:HEAD_LENGTH], size=len(good), claimed=None)
    assert head.notes == ("what its end says was not checked",)
    bad = bytearray(good)
    struct.pack_into("<Q", bad, len(bad) - 1024 + 28, 999)  # another descriptor
    with pytest.raises(errors.ImageError, match="Footer"):
        inspect_file(write(tmp_path / "bad.vmdk", bytes(bad)), claimed=None)


def test_a_differencing_vhd(images: Path) -> None:
    data = bytearray((images / "dynamic.vhd").read_bytes())
    data[60:64] = struct.pack(">I", 4)
    assert "parent image" in refusal(bytes(data))
    data[60:64] = struct.pack(">I", 9)
    assert "unknown type 9" in refusal(bytes(data))


def test_a_fixed_vhd_that_is_cut_off(images: Path) -> None:
    data = (images / "fixed.vhd").read_bytes()
    assert "cut off" in refusal(data[1024:])


def test_a_vhdx_with_a_parent(images: Path, tmp_path: Path) -> None:
    data = bytearray((images / "dynamic.vhdx").read_bytes())
    metadata = data.index(b"metadata")
    item = data.index(uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le, metadata)
    (offset,) = struct.unpack_from("<I", data, item + 16)
    data[metadata + offset + 4] |= 2
    path = write(tmp_path / "child.vhdx", bytes(data))
    with pytest.raises(errors.ImageError, match="parent image"):
        inspect_file(path, claimed=None)
    assert "metadata" in refusal(bytes(data[:metadata]) + b"M" + bytes(data[metadata + 1 :]))


@pytest.mark.parametrize(
    ("offset", "value", "expected"),
    [
        (4, struct.pack(">I", 4), "version"),
        (20, struct.pack(">I", 40), r"2\^40"),
        (24, struct.pack(">Q", 2**64 - 1), "does not fit"),
        (24, struct.pack(">Q", 2**50), "does not fit"),
        (36, struct.pack(">I", 2**31), "does not fit"),
        (40, struct.pack(">Q", 2**40), "cut off"),
        (72, struct.pack(">Q", 1 << 5), "Unknown"),
        (72, struct.pack(">Q", 1 << 63), "Unknown"),
    ],
)
def test_impossible_qcow2_headers(
    images: Path, tmp_path: Path, offset: int, value: bytes, expected: str
) -> None:
    data = bytearray((images / "plain.qcow2").read_bytes())
    data[offset : offset + len(value)] = value
    with pytest.raises(errors.ImageError, match=expected):
        inspect_file(write(tmp_path / "x.qcow2", bytes(data)), claimed=None)


@pytest.mark.parametrize("image_format", ["vdi", "qed"])
def test_formats_that_are_not_served(tmp_path: Path, image_format: str) -> None:
    qemu_img("create", "-f", image_format, tmp_path / "x", "1M")
    for claimed in (None, ImageFormat.RAW, ImageFormat.QCOW2):
        with pytest.raises(errors.ImageError, match=f"{image_format} images are not served"):
            inspect_file(tmp_path / "x", claimed=claimed)


def iso(*, mbr: bool = False, signature: bytes = b"\x01CD001\x01") -> bytes:
    data = bytearray(1 * MiB)
    if mbr:
        data[446:462] = bytes([0x80, 0, 2, 0, 0x17]) + bytes(11)
        data[510:512] = b"\x55\xaa"
    data[32768 : 32768 + len(signature)] = signature
    struct.pack_into("<I", data, 32768 + 80, 512)
    struct.pack_into("<H", data, 32768 + 128, 2048)
    return bytes(data)


def hybrid_with_gpt() -> bytes:
    """As xorriso and isohybrid make them: a protective MBR and a GPT before the volume."""
    data = bytearray(iso(mbr=True))
    data[450] = 0xEE
    data[512:520] = b"EFI PART"
    return bytes(data)


@pytest.mark.parametrize(
    "data", [iso(), iso(mbr=True), hybrid_with_gpt(), iso(signature=b"\0BEA01\x01")]
)
def test_isos_hybrid_ones_too(data: bytes) -> None:
    for claimed in (None, ImageFormat.ISO):
        facts = inspect_head(data[:HEAD_LENGTH], size=len(data), claimed=claimed)
        assert facts == ImageFacts(ImageFormat.ISO, len(data))
    as_raw = inspect_head(data[:HEAD_LENGTH], size=len(data), claimed=ImageFormat.RAW)
    assert as_raw.format is ImageFormat.RAW
    assert as_raw.notes


def test_nothing_is_no_disk(tmp_path: Path) -> None:
    for claimed in (None, ImageFormat.RAW, ImageFormat.QCOW2):
        assert "it is empty" in refusal(b"", claimed)
        with pytest.raises(errors.ImageError, match="it is empty"):
            inspect_file(write(tmp_path / "x", b""), claimed=claimed)


def test_an_iso_with_a_qcow2_header_in_front() -> None:
    data = bytearray(iso())
    data[:8] = b"QFI\xfb\0\0\0\x03"
    for claimed in (None, ImageFormat.ISO, ImageFormat.RAW, ImageFormat.QCOW2):
        assert "iso and qcow2" in refusal(bytes(data), claimed)


def test_no_iso_where_one_is_claimed() -> None:
    assert "no header of iso" in refusal(bytes(HEAD_LENGTH), ImageFormat.ISO)


def partitioned(*, valid: bool) -> bytes:
    data = bytearray(HEAD_LENGTH)
    data[510:512] = b"\x55\xaa"
    data[446:462] = bytes([0x80 if valid else 0x77, 0, 2, 0, 0x83]) + bytes(11)
    return bytes(data)


@pytest.mark.parametrize("data", [partitioned(valid=True), partitioned(valid=False)])
def test_partitioned_and_boot_code_disks_are_raw(data: bytes) -> None:
    for claimed in (None, ImageFormat.RAW):
        facts = inspect_head(data, size=SIZE, claimed=claimed)
        assert facts == ImageFacts(ImageFormat.RAW, SIZE)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"<HTML>", "web page"),
        (b"PK\x03\x04", "zip"),
    ],
)
def test_what_people_register_by_mistake(start: bytes, what: str) -> None:
    data = start.ljust(4096, b"\0")
    assert what in refusal(data)
    assert what in inspect_head(data, size=4096, claimed=ImageFormat.RAW).notes[0]


@pytest.mark.parametrize("length", [0, 1, 4, 40, 72, 100, 511, 513, 33000])
@pytest.mark.parametrize("name", REAL)
def test_short_heads(images: Path, name: str, length: int) -> None:
    """What is not there stays unknown while the rest may still come; a cut-off header not."""
    path, claimed = images / name, REAL[name][2]
    data = path.read_bytes()
    facts = _or_error(data[:length], len(data), claimed)
    if isinstance(facts, ImageFacts):
        assert facts.format is claimed
        assert facts.notes
    if length < 512 and claimed is not ImageFormat.RAW:
        assert isinstance(_or_error(data[:length], length, claimed), errors.ImageError)


def _or_error(data: bytes, size: int, claimed: ImageFormat | None) -> object:
    try:
        return inspect_head(data, size=size, claimed=claimed)
    except errors.ImageError as error:
        return error


def test_a_descriptor_is_neither_moved_nor_closed(images: Path) -> None:
    descriptor = os.open(images / "plain.qcow2", os.O_RDONLY)
    try:
        os.lseek(descriptor, 7, os.SEEK_SET)
        facts = inspect_file(descriptor, claimed=ImageFormat.QCOW2)
        assert facts.virtual_size == SIZE
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 7
    finally:
        os.close(descriptor)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(errors.ImageError, match="no file"):
            inspect_file(path, claimed=None)
    with pytest.raises(errors.StorageError, match="missing: cannot be read"):
        inspect_file(tmp_path / "missing", claimed=None)


MAGICS = [
    b"", b"QFI\xfb\0\0\0\x03", b"QFI\xfb\0\0\0\x02", b"QFI\xfb\0\0\0\x01", b"KDMV\x01\0\0\0",
    b"conectix", b"vhdxfile", b"QED\0", b"# Disk DescriptorFile\n", b"LUKS\xba\xbe\0\x01",
]  # fmt: skip


@given(
    magic=st.sampled_from(MAGICS),
    body=st.binary(max_size=1500),
    is_iso=st.booleans(),
    more=st.integers(0, 3 * 10**6),
    claimed=st.sampled_from([None, *ImageFormat]),
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_in_facts_or_an_image_error(
    magic: bytes, body: bytes, is_iso: bool, more: int, claimed: ImageFormat | None
) -> None:
    data = magic + body
    if is_iso:
        data = data.ljust(32768, b"\0") + b"\x01CD001" + body
    found = _or_error(data, len(data) + more, claimed)
    if isinstance(found, ImageFacts):
        assert claimed in (None, found.format)
    else:
        assert "\n" not in str(found)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_real_images_with_a_few_wrong_bytes(images: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(REAL)))
    image = bytearray((images / name).read_bytes()[: 4 * MiB])
    ends = st.integers(0, 2048) | st.integers(0, len(image) - 1)
    for offset in data.draw(st.lists(ends, min_size=1, max_size=6)):
        image[offset] = data.draw(st.integers(0, 255))
    claimed = data.draw(st.sampled_from([None, REAL[name][2]]))
    for length in (HEAD_LENGTH, len(image)):
        found = _or_error(bytes(image[:length]), len(image), claimed)
        assert isinstance(found, ImageFacts | errors.ImageError)


def test_the_inspector_is_imported_when_first_needed() -> None:
    program = "import sys, ddfs.image.inspect; print('oslo_utils' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
