"""Images as others' tools make them, each registered for what it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lab.host import Host
from lab.metalink import sha256_of
from lab.site import MIB, Site

# What Debian's installer is made with: it boots as a disc, and from a stick by BIOS or UEFI.
HYBRID = (
    *("xorriso", "-as", "mkisofs", "-quiet", "-V", "INSTALL"),
    *("-isohybrid-mbr", "/usr/lib/ISOLINUX/isohdpfx.bin", "-b", "isolinux.bin", "-c", "boot.cat"),
    *("-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"),
    *("-eltorito-alt-boot", "-e", "efi.img", "-no-emul-boot"),
)
WITH_GPT = ("-isohybrid-gpt-basdat", "-isohybrid-apm-hfsplus")

# The suffix in the pool, by the name that an image is published under; one name tells.
FORMATS = {
    "hybrid-mbr": "iso", "hybrid-gpt": "iso", "disc": "iso",
    "disk-mbr": "img", "disk-gpt": "img",
    "vpc-fixed.vhd": "vhd", "vpc-dynamic": "vhd", "vhdx": "vhdx", "vmdk-stream": "vmdk",
}  # fmt: skip
CONVERTED = {
    "vpc-fixed.vhd": ("vpc", "subformat=fixed"),
    "vpc-dynamic": ("vpc", "subformat=dynamic"),
    "vhdx": ("vhdx", "subformat=dynamic"),
    "vmdk-stream": ("vmdk", "subformat=streamOptimized"),
}


def run(*command: str | Path, stdin: str | None = None) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, input=stdin)


@pytest.fixture
def images(directory: Path) -> Path:
    """A folder with an image for each line of FORMATS."""
    folder = directory / "made"
    tree = folder / "tree"
    tree.mkdir(parents=True)
    (tree / "isolinux.bin").write_bytes(Path("/usr/lib/ISOLINUX/isolinux.bin").read_bytes())
    (tree / "efi.img").write_bytes(os.urandom(2 * MIB))
    run(*HYBRID, "-partition_offset", "16", "-o", folder / "hybrid-mbr", tree)
    run(*HYBRID, *WITH_GPT, "-o", folder / "hybrid-gpt", tree)
    run("xorriso", "-as", "mkisofs", "-quiet", "-o", folder / "disc", tree)
    for table in ("mbr", "gpt"):
        disk = folder / f"disk-{table}"
        disk.write_bytes(os.urandom(4 * MIB))
        label = "dos" if table == "mbr" else table
        run("sfdisk", "--quiet", disk, stdin=f"label: {label}\nstart=2048, bootable\n")
    for name, (target, options) in CONVERTED.items():
        command = ("qemu-img", "convert", "-f", "raw", "-O", target, "-o", options)
        run(*command, folder / "disk-mbr", folder / name)
    return folder


def test_every_kind_of_image_is_taken_for_what_it_is(
    host: Host, fast_site: Site, images: Path
) -> None:
    # A boot record is in front of each that boots from a stick, as of a disk.
    assert (images / "hybrid-gpt").read_bytes()[512:520] == b"EFI PART"
    assert (images / "hybrid-mbr").read_bytes()[510:512] == b"\x55\xaa"
    tables = []
    for name in FORMATS:
        # Of every second one, nothing is verified before it is here: not its head either.
        pieces = None if len(tables) % 2 else MIB
        source = fast_site.publish_file(images / name, piece_length=pieces).source
        tables.append(f'[template.{Path(name).stem}]\nsource = "{source}"\n')
    file = images / "all.toml"
    file.write_text("".join(tables))
    host.ddfs("template", "apply", file)
    names = {entry.name for entry in host.templates.iterdir()}
    assert names == {f"{Path(name).stem}.{suffix}" for name, suffix in FORMATS.items()}
    host.ddfs("prefetch", *(Path(name).stem for name in FORMATS))
    for name in FORMATS:
        assert host.published(Path(name).stem).read_bytes() == (images / name).read_bytes()
    # Whoever says what it is has to be right.
    for name, claim in (("hybrid-gpt", "qcow2"), ("disk-gpt", "iso"), ("vpc-fixed", "vhdx")):
        arguments = ("template", "add", "x", fast_site.documents.url(f"{name}.meta4"))
        refused = host.ddfs(*arguments, "--format", claim, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)


def test_a_vmdk_of_several_files_is_no_image(host: Host, fast_site: Site, directory: Path) -> None:
    for subformat in ("monolithicFlat", "twoGbMaxExtentSparse"):
        path = directory / f"{subformat}.vmdk"
        run("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", path, "4M")
        published = fast_site.publish_file(path, piece_length=None)
        plain = (fast_site.mirrors[0].url(path.name), "--checksum", f"sha256:{sha256_of(path)}")
        for source in ((published.source,), plain, (*plain, "--format", "raw")):
            refused = host.ddfs("template", "add", "parts", *source, check=False)
            assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
            assert "the image is refused" in refused.stderr
