"""Chains of real images, and headers that somebody made by hand."""

import json
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfs.image.chain import (
    MAX_DEPTH,
    ChainError,
    Image,
    Mountpoint,
    PoolTargets,
    backing_chain,
    domain_files,
    needed_files,
    sealed_files,
    templates_under,
)
from ddfs.image.header import references

MOUNT = "/srv/ddfs-of-a-test"


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def overlay(path: Path, backing: str, *options: str, backing_format: str = "qcow2") -> Path:
    """A qcow2 overlay on *backing*, which need not exist (-u)."""
    names = ("-b", backing, "-F", backing_format)
    qemu_img("create", "-q", "-u", "-f", "qcow2", *options, *names, path, "1M")
    return path


def raw_qcow2(path: Path, backing: bytes, *, version: int = 3, length: int | None = None) -> Path:
    """A header with a backing name that qemu-img would not write."""
    stated = len(backing) if length is None else length
    head = b"QFI\xfb" + struct.pack(">IQI", version, 512 if backing else 0, stated)
    head = head.ljust(72, b"\0")
    if version == 3:
        head += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    path.write_bytes(head.ljust(512, b"\0") + backing)
    return path


def paths(top: Path, image_format: str | None = "qcow2", under: str = MOUNT) -> list[str]:
    return [image.path for image in backing_chain(str(top), image_format, under=under)]


def test_follows_real_overlays_to_the_template(tmp_path: Path) -> None:
    template = f"{MOUNT}/templates/debian-12.qcow2"
    middle = overlay(tmp_path / "middle.qcow2", template)
    top = overlay(tmp_path / "top.qcow2", str(middle), "-o", "compat=0.10")
    assert backing_chain(str(top), "qcow2", under=MOUNT) == (
        Image(str(top), "qcow2"),
        Image(str(middle), "qcow2"),
        Image(template, "qcow2"),
    )


@pytest.mark.parametrize(
    "name",
    [
        "base.qcow2",
        "./base.qcow2",
        "a name with 'quotes\" and spaces.qcow2",
        "grün-ü-日本.qcow2",
        "<&>.qcow2",
    ],
)
def test_relative_names_start_at_the_directory_of_the_parent(tmp_path: Path, name: str) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "1M")
    top = overlay(tmp_path / "top.qcow2", name)
    assert paths(top) == [str(top), f"{tmp_path}/{name}"]


def test_relative_names_start_at_the_path_as_named_not_at_the_link_target(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    real = overlay(tmp_path / "there/top.qcow2", "base.qcow2")
    link = tmp_path / "here/top.qcow2"
    link.symlink_to(real)
    assert paths(link) == [str(link), f"{tmp_path}/here/base.qcow2"]


def test_a_raw_disk_is_never_looked_into(tmp_path: Path) -> None:
    top = raw_qcow2(tmp_path / "disk.img", f"{MOUNT}/templates/t.qcow2".encode())
    assert paths(top, "raw") == [str(top)]
    assert paths(top, "qcow2") == [str(top), f"{MOUNT}/templates/t.qcow2"]


def test_a_raw_backing_file_is_never_looked_into(tmp_path: Path) -> None:
    base = raw_qcow2(tmp_path / "base.img", f"{MOUNT}/templates/t.qcow2".encode())
    top = overlay(tmp_path / "top.qcow2", str(base), backing_format="raw")
    assert paths(top) == [str(top), str(base)]


def test_a_backing_file_without_a_format_is_probed(tmp_path: Path) -> None:
    base = overlay(tmp_path / "base.qcow2", f"{MOUNT}/templates/t.qcow2")
    top = raw_qcow2(tmp_path / "top.qcow2", str(base).encode())
    assert paths(top)[-1] == f"{MOUNT}/templates/t.qcow2"


def test_version_1_and_2_headers(tmp_path: Path) -> None:
    for version in (1, 2):
        top = raw_qcow2(tmp_path / f"v{version}", b"/base", version=version)
        assert paths(top) == [str(top), "/base"]


def test_external_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where qemu-img makes the data file
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", top, "1M")
    chain = backing_chain(str(top), "qcow2", under=MOUNT)
    assert chain == (
        Image(str(top), "qcow2"),
        Image(f"{tmp_path}/data.raw", "raw", is_data=True),
    )


def test_vmdk_overlay(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "vmdk", tmp_path / "base.vmdk", "1M")
    names = ("-b", "base.vmdk", "-F", "vmdk")
    qemu_img("create", "-q", "-f", "vmdk", *names, tmp_path / "top.vmdk")
    assert paths(tmp_path / "top.vmdk", "vmdk") == [f"{tmp_path}/top.vmdk", f"{tmp_path}/base.vmdk"]


TEMPLATE = f"{MOUNT}/templates/t.qcow2"


@pytest.mark.parametrize(
    ("options", "image_format"),
    [
        ({"driver": "qcow2", "file": {"driver": "file", "filename": TEMPLATE}}, "qcow2"),
        ({"driver": "qcow2", "file.driver": "file", "file.filename": TEMPLATE}, "qcow2"),
        ({"driver": "qcow2", "file": {"filename": TEMPLATE}}, "qcow2"),
        ({"driver": "raw", "file": {"driver": "host_device", "filename": TEMPLATE}}, "raw"),
        ({"driver": "file", "filename": TEMPLATE}, "qcow2"),
        (
            {
                "driver": "throttle",
                "file": {"driver": "qcow2", "file": {"driver": "file", "filename": TEMPLATE}},
            },
            "qcow2",
        ),
    ],
)
def test_json_names(tmp_path: Path, options: dict[str, object], image_format: str) -> None:
    top = overlay(tmp_path / "top.qcow2", "json:" + json.dumps(options))
    assert backing_chain(str(top), "qcow2", under=MOUNT)[1:] == (Image(TEMPLATE, image_format),)


@pytest.mark.parametrize(
    "name",
    [
        "nbd://localhost/x",
        "https://mirror.example/x.qcow2",
        'json:{"driver":"qcow2","file":{"driver":"nbd","host":"h"}}',
        'json:{"driver":"qcow2","file":"node-7"}',
    ],
)
def test_what_is_not_local_ends_the_chain(tmp_path: Path, name: str) -> None:
    top = raw_qcow2(tmp_path / "top.qcow2", name.encode())
    assert paths(top) == [str(top)]


def test_the_file_protocol(tmp_path: Path) -> None:
    top = raw_qcow2(tmp_path / "top.qcow2", f"file:{TEMPLATE}".encode())
    assert paths(top)[-1] == TEMPLATE


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"json:{", "no JSON"),
        (b"json:[1]", "no JSON object"),
        (b"json:" + b'{"file":' * 60 + b"1" + b"}" * 60, "nested too deeply"),
    ],
)
def test_unusable_json_names(tmp_path: Path, name: bytes, reason: str) -> None:
    with pytest.raises(ChainError, match=reason):
        paths(raw_qcow2(tmp_path / "top.qcow2", name))


def test_a_loop_is_refused_under_whatever_names(tmp_path: Path) -> None:
    overlay(tmp_path / "a.qcow2", "b.qcow2")
    overlay(tmp_path / "b.qcow2", "c.qcow2")
    (tmp_path / "c.qcow2").symlink_to("a.qcow2")
    with pytest.raises(ChainError, match="its own backing file"):
        paths(tmp_path / "a.qcow2")


def test_a_chain_of_the_depth_that_libvirt_takes(tmp_path: Path) -> None:
    for number in range(MAX_DEPTH - 1):
        raw_qcow2(tmp_path / f"{number}.qcow2", f"{number + 1}.qcow2".encode())
    assert len(paths(tmp_path / "0.qcow2")) == MAX_DEPTH
    raw_qcow2(tmp_path / f"{MAX_DEPTH - 1}.qcow2", b"last.qcow2")
    with pytest.raises(ChainError, match=f"more than {MAX_DEPTH}"):
        paths(tmp_path / "0.qcow2")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"QFI\xfb", "cut off"),
        (b"QFI\xfb" + struct.pack(">IQIQ", 3, 0, 0, 0), "cut off"),
        (b"QFI\xfb" + struct.pack(">IQIQ", 4, 0, 0, 0), "version 4"),
        (b"QFI\xfb" + struct.pack(">IQI", 2, 512, 1024) + bytes(600), "1024 bytes"),
        (b"QFI\xfb" + struct.pack(">IQI", 2, 2**63, 10) + bytes(600), "10 bytes"),
        (b"QFI\xfb" + struct.pack(">IQI", 2, 4096, 10) + bytes(600), "behind the end"),
        (b'# Disk DescriptorFile\nparentFileNameHint="x', "does not end"),
    ],
)
def test_headers_that_make_no_sense(tmp_path: Path, content: bytes, reason: str) -> None:
    image = tmp_path / "x\ny.qcow2"
    image.write_bytes(content)
    with pytest.raises(ChainError, match=reason) as caught:
        paths(image, "vmdk" if content.startswith(b"#") else "qcow2")
    assert "\n" not in str(caught.value)


@given(
    st.sampled_from([b"QFI\xfb\0\0\0\x03", b"QFI\xfb\0\0\0\x02", b"KDMV", b""]),
    st.binary(max_size=700),
    st.sampled_from([None, "qcow2", "vmdk", "raw"]),
)
@settings(max_examples=500)
def test_any_header_ends_in_references_or_a_chain_error(
    magic: bytes, tail: bytes, declared: str | None
) -> None:
    content = magic + tail
    try:
        found = references(lambda at, length: content[at : at + length], declared)
    except ChainError:
        return
    for name in (found.backing, found.data):
        assert name is None or 0 < len(name) <= 1023


def test_pipes_devices_and_directories_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null"), tmp_path / "missing"):
        assert paths(path) == [str(path)]


def test_nothing_under_the_mountpoint_is_opened(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    (mount / "templates").mkdir(parents=True)
    inside = overlay(mount / "templates/t.qcow2", "/elsewhere")
    assert paths(inside, under=str(mount)) == [str(inside)]
    link = tmp_path / "link.qcow2"
    link.symlink_to(inside)
    assert paths(link, under=str(mount)) == [str(link)]
    assert paths(link, under=str(tmp_path / "other")) == [str(link), "/elsewhere"]


def domain(disks: str) -> bytes:
    return f"<domain><devices>{disks}</devices></domain>".encode()


def test_needed_files_have_their_name_under_the_mountpoint(tmp_path: Path) -> None:
    link = tmp_path / "library"
    link.symlink_to(f"{MOUNT}/templates")
    top = overlay(tmp_path / "top.qcow2", "library/t.qcow2")
    xml = domain(
        f"<disk><driver type='qcow2'/><source file='{top}'/><target dev='vda'/></disk>"
        f"<disk device='cdrom'><source file='{link}/cd.iso' startupPolicy='optional'/>"
        "<target dev='sda'/></disk>"
    )
    files = needed_files(xml, MOUNT, PoolTargets([]))
    assert [(f.path, f.writable, f.optional, f.role, f.target) for f in files] == [
        (f"{MOUNT}/templates/t.qcow2", False, False, "backing", "vda"),
        (f"{MOUNT}/templates/cd.iso", False, True, "cdrom", "sda"),
    ]
    assert templates_under(files, f"{MOUNT}/templates") == files
    assert templates_under(files, f"{MOUNT}/other") == ()


def test_sealed_files_are_those_that_nobody_may_write(tmp_path: Path) -> None:
    sealed, plain, link = (tmp_path / name for name in ("sealed", "plain", "link"))
    for path in (sealed, plain):
        path.write_bytes(b"")
    sealed.chmod(0o444)
    link.symlink_to(sealed)
    mount = Mountpoint(MOUNT)
    xml = domain(
        "".join(
            f"<disk device='disk'><source file='{path}'/><target dev='vd{letter}'/>{more}</disk>"
            for letter, path, more in (
                ("a", link, ""),
                ("b", plain, ""),
                ("c", sealed, "<readonly/>"),
                ("d", f"{MOUNT}/templates/t.img", ""),
                ("e", tmp_path / "missing", ""),
                ("f", tmp_path, ""),
            )
        )
    )
    (found,) = sealed_files(domain_files(xml, mount, PoolTargets([])), mount)
    assert (found.file.target, found.file.path) == ("vda", str(sealed))
    assert (found.device, found.inode) == (sealed.stat().st_dev, sealed.stat().st_ino)


def test_the_data_file_of_the_top_image_is_written_and_that_of_a_backing_image_not(
    tmp_path: Path,
) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    overlay(top, "base.qcow2")
    for image in (base, top):
        _point_data_file_to(image, f"{MOUNT}/templates/data.img")
    for image, writable in ((base, [True]), (top, [True, False])):
        xml = domain(f"<disk><driver type='qcow2'/><source file='{image}'/></disk>")
        files = needed_files(xml, MOUNT, PoolTargets([]))
        assert [(f.role, f.writable) for f in files] == [("data", w) for w in writable]


def _point_data_file_to(image: Path, name: str) -> None:
    """Set the incompatible bit and put the extension in front of the others."""
    content = bytearray(image.read_bytes())
    (header_length,) = struct.unpack_from(">I", content, 100)
    (offset, length) = struct.unpack_from(">QI", content, 8)
    backing = bytes(content[offset : offset + length]) if offset else b""
    (features,) = struct.unpack_from(">Q", content, 72)
    struct.pack_into(">Q", content, 72, features | 4)
    raw = name.encode()
    extension = struct.pack(">II", 0x44415441, len(raw)) + raw.ljust((len(raw) + 7) // 8 * 8, b"\0")
    kind = struct.pack(">II", 0xE2792ACA, 5) + b"qcow2\0\0\0" if offset else b""
    area = extension + kind + bytes(8) + backing
    content[header_length : header_length + len(area)] = area
    if offset:
        struct.pack_into(">Q", content, 8, header_length + len(area) - len(backing))
    image.write_bytes(content)


def test_explicit_backing_stores_are_believed(tmp_path: Path) -> None:
    top = overlay(tmp_path / "top.qcow2", f"{MOUNT}/templates/from-header.qcow2")
    source = f"<driver type='qcow2'/><source file='{top}'/>"
    explicit = (
        "<backingStore type='file'><format type='qcow2'/>"
        f"<source file='{MOUNT}/templates/explicit.qcow2'/><backingStore/></backingStore>"
    )
    for below, expected in (
        ("", ["from-header"]),
        ("<backingStore/>", []),
        (explicit, ["explicit"]),
    ):
        files = needed_files(domain(f"<disk>{source}{below}</disk>"), MOUNT, PoolTargets([]))
        assert [Path(f.path).stem for f in files] == expected


def test_an_explicit_chain_without_an_end_goes_on_in_the_header(tmp_path: Path) -> None:
    middle = overlay(tmp_path / "middle.qcow2", f"{MOUNT}/templates/t.qcow2")
    xml = domain(
        f"<disk><driver type='qcow2'/><source file='{tmp_path}/not-there.qcow2'/>"
        f"<backingStore type='file'><format type='qcow2'/><source file='{middle}'/></backingStore>"
        "</disk>"
    )
    files = needed_files(xml, MOUNT, PoolTargets([]))
    assert [(f.path, f.role) for f in files] == [(f"{MOUNT}/templates/t.qcow2", "backing")]


def test_a_broken_chain_counts_as_far_as_it_can_be_made_out(tmp_path: Path) -> None:
    overlay(tmp_path / "loop.qcow2", "loop.qcow2")
    xml = domain(
        f"<disk><driver type='qcow2'/><source file='{tmp_path}/loop.qcow2'/></disk>"
        f"<disk device='cdrom'><source file='{MOUNT}/templates/cd.iso'/></disk>"
    )
    files = needed_files(xml, MOUNT, PoolTargets([]))
    assert [f.path for f in files] == [f"{MOUNT}/templates/cd.iso"]


def test_a_device_that_the_kernel_lets_nobody_write_to_is_sealed(
    tmp_path: Path, make_device: Callable[..., Path]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    sealed, plain = make_device(image, "--read-only"), make_device(image)
    link = tmp_path / "by-name"
    link.symlink_to(sealed)
    disks = "".join(
        f"<disk type='block'><driver type='raw'/><source dev='{path}'/><target dev='vd{name}'/>"
        "</disk>"
        for name, path in (("a", link), ("b", plain))
    )
    xml = f"<domain><devices>{disks}</devices></domain>".encode()
    mount = Mountpoint(str(tmp_path / "mnt"))
    (found,) = sealed_files(domain_files(xml, mount, PoolTargets([])), mount)
    assert (found.file.target, found.file.path) == ("vda", str(sealed))
    assert (found.device, found.inode) == (sealed.stat().st_rdev, 0)
