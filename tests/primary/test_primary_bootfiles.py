"""Which files libvirt has to open for writing, and get no immutable flag therefore."""

import gzip
from pathlib import Path

import pytest
from lab.bootimage import boot_sector

from ddfs.primary import kernel
from ddfs.primary.publish import _is_boot_file


@pytest.mark.parametrize(
    "head",
    [
        boot_sector("x") + b"\xeb\x66HdrS\x0f\x02",
        b"070701" + bytes(1000),
        gzip.compress(b"070701"),
        b"\x28\xb5\x2f\xfd" + bytes(1000),
        b"\x7fELF\x02\x01\x01",
    ],
    ids=["kernel", "cpio", "gzip", "zstd", "elf"],
)
def test_kernels_and_archives_are_boot_files(head: bytes) -> None:
    assert _is_boot_file(head)


@pytest.mark.parametrize(
    "head",
    [b"", bytes(1024), b"QFI\xfb\0\0\0\x03", boot_sector("x") + b"EFI PART", b"HdrS"],
)
def test_disks_are_not(head: bytes) -> None:
    assert not _is_boot_file(head)


def test_what_is_no_file_of_ours_has_no_flag_to_take_off(tmp_path: Path) -> None:
    """LVM's devices are symlinks; a volume that is gone is for others to tell."""
    link = tmp_path / "volume"
    link.symlink_to("/dev/null")
    for path in (link, tmp_path / "absent", Path("/dev/null")):
        kernel.clear_immutable(path)
