"""Paths are followed up to the mountpoint, and not a step further."""

import os
from pathlib import Path

import pytest

from ddfs.image.paths import Mountpoint, mounted_at


@pytest.fixture
def mount(tmp_path: Path) -> Mountpoint:
    (tmp_path / "mount/templates").mkdir(parents=True)
    return Mountpoint(str(tmp_path / "mount"))


@pytest.mark.parametrize(
    "name",
    [
        "mount/templates/t.qcow2",
        "mount//templates/./t.qcow2",
        "other/../mount/templates/t.qcow2",
        "mount/templates/x/../t.qcow2",
    ],
)
def test_lexically_under_the_mountpoint(mount: Mountpoint, tmp_path: Path, name: str) -> None:
    assert mount.resolve(f"{tmp_path}/{name}") == f"{mount.path}/templates/t.qcow2"
    assert mount.resolve(f"/{tmp_path}/{name}") == f"{mount.path}/templates/t.qcow2"


def test_names_that_only_look_alike(mount: Mountpoint, tmp_path: Path) -> None:
    for name in ("mountain/t", "moun", "mount/../t", "x/mount/t"):
        assert not mount.holds(mount.resolve(f"{tmp_path}/{name}"))
    assert mount.holds(mount.resolve(mount.path))


def test_symlinks_that_lead_into_the_mount(mount: Mountpoint, tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/absolute").symlink_to(f"{mount.path}/templates")
    (tmp_path / "deep/relative").symlink_to("er/../../mount")
    (tmp_path / "file.qcow2").symlink_to("deep/er/absolute/t.qcow2")
    for name in ("deep/er/absolute/t.qcow2", "deep/relative/templates/t.qcow2", "file.qcow2"):
        assert mount.resolve(f"{tmp_path}/{name}") == f"{mount.path}/templates/t.qcow2"


def test_links_inside_the_mount_are_not_followed(mount: Mountpoint, tmp_path: Path) -> None:
    os.symlink("/elsewhere", f"{mount.path}/templates/t.qcow2")
    (tmp_path / "link").symlink_to(f"{mount.path}/templates/t.qcow2")
    assert mount.resolve(f"{tmp_path}/link") == f"{mount.path}/templates/t.qcow2"


def test_a_link_that_leads_through_the_mount_and_out_again(
    mount: Mountpoint, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(f"{mount.path}/templates/../../outside/t")
    assert mount.resolve(f"{tmp_path}/link") == f"{tmp_path}/outside/t"


def test_a_mountpoint_below_a_symlink_is_found_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "real/mount").mkdir(parents=True)
    (tmp_path / "alias").symlink_to("real")
    for name, other in (("alias", "real"), ("real", "alias")):
        mount = Mountpoint(f"{tmp_path}/{name}/mount")
        assert mount.resolve(f"{tmp_path}/{other}/mount/t") == f"{tmp_path}/{name}/mount/t"


def test_a_mountpoint_that_is_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    assert Mountpoint(f"{tmp_path}/alias").resolve(f"{tmp_path}/real/t") == f"{tmp_path}/alias/t"


def test_loops_and_missing_components_end(mount: Mountpoint, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name in ("a/x", "no/such/place", "nul\0byte"):
        assert not mount.holds(mount.resolve(f"{tmp_path}/{name}"))


def test_reads_mountinfo(tmp_path: Path) -> None:
    odd = tmp_path / "a b\\c"
    escaped = str(odd).replace("\\", r"\134").replace(" ", r"\040")
    info = tmp_path / "mountinfo"
    info.write_text(f"22 1 0:20 / {escaped} rw - fuse.ddfs ddfs rw\nbroken line\n")
    assert mounted_at(str(info)) == {str(odd)}
    assert Mountpoint(str(odd), mountinfo=str(info)).is_mounted()
    assert not Mountpoint(f"{odd}/x", mountinfo=str(info)).is_mounted()
    assert mounted_at(str(tmp_path / "none")) == frozenset()
    assert "/" in mounted_at()


def test_nothing_below_or_at_a_mounted_mountpoint_is_touched(tmp_path: Path) -> None:
    # A symlink as a witness: it would be followed if it were looked at.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mount").symlink_to("elsewhere")
    info = tmp_path / "mountinfo"
    info.write_text(f"22 1 0:20 / {tmp_path}/mount rw - fuse.ddfs ddfs rw\n")
    mount = Mountpoint(f"{tmp_path}/mount", mountinfo=str(info))
    assert not mount.holds(mount.resolve(f"{tmp_path}/elsewhere/t"))
    (tmp_path / "link").symlink_to("mount/t")
    assert mount.resolve(f"{tmp_path}/link") == f"{tmp_path}/mount/t"
