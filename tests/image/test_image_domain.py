"""What a domain's XML names, and XML that is none."""

import encodings
from pathlib import Path

import pytest

from ddfs.image import domain
from ddfs.image.chain import ChainError, DomainFile, PoolTargets, files_of_domain

NO_POOLS = PoolTargets([])


def disks(text: str) -> list[DomainFile]:
    xml = f"<domain type='kvm'><devices>{text}</devices></domain>".encode()
    return list(files_of_domain(xml, NO_POOLS))


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (
            "<disk type='file'><source file='/a b.img'/><target dev='vda'/></disk>",
            DomainFile("/a b.img", True, False, "disk", "vda", "file"),
        ),
        (
            "<disk type='block' device='lun'><source dev='/dev/vg/x'/><target dev='sda'/></disk>",
            DomainFile("/dev/vg/x", True, False, "lun", "sda", "block"),
        ),
        (
            "<disk><source file='/ü&lt;&apos;\"'/><target dev='vdb'/><readonly/></disk>",
            DomainFile("/ü<'\"", False, False, "disk", "vdb", "file"),
        ),
        (
            "<disk><source file='/a'/><target dev='vda'/><transient/></disk>",
            DomainFile("/a", False, False, "disk", "vda", "file"),
        ),
        (
            "<disk device='cdrom'><source file='/cd.iso' startupPolicy='optional'/></disk>",
            DomainFile("/cd.iso", False, True, "cdrom", "cdrom", "file"),
        ),
        (
            "<disk device='cdrom'><source file='/cd.iso' startupPolicy='requisite'/></disk>",
            DomainFile("/cd.iso", False, False, "cdrom", "cdrom", "file"),
        ),
        (
            "<disk device='floppy'><source file='/f'/><target dev='fda'/></disk>",
            DomainFile("/f", True, False, "floppy", "fda", "file"),
        ),
    ],
)
def test_disks(disk: str, expected: DomainFile) -> None:
    assert disks(disk) == [expected]


@pytest.mark.parametrize(
    "disk",
    [
        "<disk device='cdrom'><target dev='sda'/></disk>",
        "<disk type='network'><source protocol='nbd' name='/x'/></disk>",
        "<disk type='volume'><source pool='p' volume='v'/></disk>",
        "<disk><source file='relative'/></disk>",
        "<disk><source/></disk>",
    ],
)
def test_disks_without_a_local_file(disk: str) -> None:
    assert disks(disk) == []


def test_backing_stores_mirrors_and_data_stores() -> None:
    found = disks(
        "<disk><driver type='qcow2'/><source file='/top'>"
        "<dataStore type='file'><format type='raw'/><source file='/data'/></dataStore></source>"
        "<backingStore type='file'><format type='qcow2'/><source file='/middle'/>"
        "<backingStore type='file'><format type='raw'/><source file='/base'/>"
        "<backingStore/></backingStore></backingStore>"
        "<mirror type='file' job='copy'><format type='qcow2'/><source file='/copy'/></mirror>"
        "<target dev='vda'/></disk>"
    )
    assert [(f.path, f.writable, f.role) for f in found] == [
        ("/top", True, "disk"),
        ("/data", True, "data"),
        ("/middle", False, "backing"),
        ("/base", False, "backing"),
        ("/copy", True, "mirror"),
    ]
    assert {f.target for f in found} == {"vda"}


def test_boot_files() -> None:
    xml = b"""<?xml version='1.0' encoding='utf-8'?>
    <domain><os><type>hvm</type>
      <kernel> /vmlinuz </kernel><initrd>/initrd</initrd><dtb>/dtb</dtb>
      <loader readonly='yes' type='pflash'>/code.fd</loader>
      <nvram template='/vars.fd'>/var/vm.fd</nvram>
    </os></domain>"""
    assert [(f.path, f.writable, f.role) for f in files_of_domain(xml, NO_POOLS)] == [
        ("/vmlinuz", False, "kernel"),
        ("/initrd", False, "initrd"),
        ("/dtb", False, "dtb"),
        ("/code.fd", False, "loader"),
        ("/var/vm.fd", True, "nvram"),
        ("/vars.fd", False, "nvram-template"),
    ]


def test_firmware_that_is_written() -> None:
    xml = (
        b"<domain><os><loader type='pflash'>/code.fd</loader>"
        b"<nvram type='file'><source file='/vars'/></nvram></os></domain>"
    )
    assert [(f.path, f.writable) for f in files_of_domain(xml, NO_POOLS)] == [
        ("/code.fd", True),
        ("/vars", True),
    ]


def test_metadata_that_looks_like_disks_is_none() -> None:
    xml = b"""<domain><metadata><m:x xmlns:m='urn:x'><devices><disk><source file='/x'/></disk>
    </devices></m:x></metadata></domain>"""
    assert files_of_domain(xml, NO_POOLS) == ()


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (b"", "malformed"),
        (b"<domain>", "malformed"),
        (b"<domain></domain><domain/>", "malformed"),
        (b"<domain>\xff</domain>", "malformed"),
        (b"<?xml version='1.0' encoding='nonsense-9'?><domain/>", "malformed|encoding"),
        (b"<network/>", "not a domain's XML"),
        (b"<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>", "document type"),
        (b"<domain>" + b"<a>" * 600 + b"</a>" * 600 + b"</domain>", "levels"),
        (b"<domain>" + b"<a/>" * 200_001 + b"</domain>", "elements"),
        (b"<domain>" + b" " * (16 * 1024 * 1024) + b"</domain>", "larger than"),
    ],
)
def test_unusable_xml(xml: bytes, reason: str) -> None:
    with pytest.raises(ChainError, match=reason) as caught:
        files_of_domain(xml, NO_POOLS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_name_of_an_encoding_that_a_document_invents_does_not_stay() -> None:
    # Python remembers each that it was asked for.
    before = len(encodings._cache)  # type: ignore[attr-defined]
    for number in range(20):
        with pytest.raises(ChainError, match="unusable encoding"):
            files_of_domain(b"<?xml version='1.0' encoding='new-%d'?><domain/>" % number, NO_POOLS)
    assert len(encodings._cache) == before  # type: ignore[attr-defined]
    assert files_of_domain(b"<?xml version='1.0' encoding='ISO-8859-1'?><domain/>", NO_POOLS) == ()


def test_hundreds_of_explicit_layers() -> None:
    layers = 200
    text = "<disk><source file='/top'/>"
    text += "<backingStore><source file='/b'/>" * layers + "</backingStore>" * layers + "</disk>"
    assert len(disks(text)) == layers + 1


def pool(directory: Path, name: str, path: str, *, live: bool = False, inner: str = "") -> None:
    directory.mkdir(exist_ok=True)
    text = (
        f"<pool type='dir'><name>{inner or name}</name><target><path>{path}</path></target></pool>"
    )
    text = f"<!--\nDO NOT EDIT\n-->\n<poolstate>{text}</poolstate>" if live else text
    (directory / f"{name}.xml").write_text(text)


def test_pools_live_state_wins(tmp_path: Path) -> None:
    run, etc = tmp_path / "run", tmp_path / "etc"
    pool(etc, "images", "/configured")
    pool(etc, "only in etc", "/grün &amp; blau")
    pool(run, "images", "/live", live=True)
    pools = PoolTargets([str(run), str(etc)])
    assert pools.pool_target("images") == "/live"
    assert pools.pool_target("only in etc") == "/grün & blau"
    assert pools.volume_path("images", "v 1.qcow2") == "/live/v 1.qcow2"


def test_pools_that_are_none(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    pool(etc, "renamed", "/x", inner="other")
    pool(etc, "relative", "x")
    (etc / "broken.xml").write_text("<pool>")
    (etc / "network.xml").write_text("<network><name>network</name></network>")
    (etc / "huge.xml").write_text(" " * (1024 * 1024) + "<pool/>")
    (etc / "dir.xml").mkdir()
    pool(tmp_path, "outside", "/x")
    pools = PoolTargets([str(tmp_path / "not-there"), str(etc)])
    names = ("renamed", "relative", "broken", "network", "huge", "dir", "missing", "")
    assert [pools.pool_target(n) for n in (*names, "../outside", "n\0l")] == [None] * 10
    for volume in ("", "..", "a/b", "."):
        pool(etc, "good", "/x")
        assert pools.volume_path("good", volume) is None


def test_volume_disks(tmp_path: Path) -> None:
    pool(tmp_path / "etc", "ddfs", "/srv/ddfs/templates")
    xml = b"""<domain><devices><disk type='volume' device='cdrom'>
    <source pool='ddfs' volume='cd.iso'/><target dev='sda'/></disk></devices></domain>"""
    (file,) = files_of_domain(xml, PoolTargets([str(tmp_path / "etc")]))
    assert file == DomainFile("/srv/ddfs/templates/cd.iso", False, False, "cdrom", "sda", "file")


@pytest.mark.parametrize(
    ("kind", "said"), [("dir", "file"), ("disk", "block"), ("logical", "block"), ("gluster", "")]
)
def test_a_volume_is_what_libvirt_makes_of_its_pool(tmp_path: Path, kind: str, said: str) -> None:
    pool(tmp_path, "p", "/dev")
    path = tmp_path / "p.xml"
    path.write_text(path.read_text().replace("<pool type='dir'", f"<pool type='{kind}'"))
    xml = b"<domain><devices><disk><source pool='p' volume='x1'/></disk></devices></domain>"
    (file,) = files_of_domain(xml, PoolTargets([str(tmp_path)]))
    assert (file.path, file.kind) == ("/dev/x1", said)


def test_each_explicit_layer_says_what_it_is() -> None:
    files = disks(
        "<disk type='file'><source file='/top'/><backingStore type='block'>"
        "<source dev='/dev/x'/><backingStore/></backingStore></disk>"
    )
    assert [(file.path, file.kind) for file in files] == [("/top", "file"), ("/dev/x", "block")]


def test_the_defaults_are_libvirts_directories() -> None:
    assert domain.POOL_DIRECTORIES == ("/run/libvirt/storage", "/etc/libvirt/storage")
