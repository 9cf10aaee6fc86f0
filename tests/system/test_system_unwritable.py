"""Nobody writes a template: what libvirt and qemu-img offer for it is refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.metalink import sha256_of
from lab.site import Published

POOL = "templates"
VOLUME = "small.qcow2"


@pytest.fixture
def published(host: Host, libvirtd: Libvirtd, small: Published) -> Iterator[Path]:
    """The file in primary storage; looked at again when the test has done its worst."""
    libvirtd.install_hook(host.hook())
    host.ddfs("template", "add", "small", small.source)
    host.ddfs("prefetch", "small")
    host.ddfs("pool", "define", "--name", POOL)
    libvirtd.virsh("pool-refresh", POOL)
    path = host.published("small")
    yield path
    assert sha256_of(path) == small.sha256
    assert host.published("small") == path


@pytest.mark.parametrize(
    "words",
    [
        ["vol-wipe", VOLUME, "--pool", POOL],
        ["vol-resize", VOLUME, "1G", "--pool", POOL],
        ["vol-delete", VOLUME, "--pool", POOL],
    ],
    ids=lambda words: words[0],
)
def test_libvirt_cannot_change_the_volume(
    published: Path, libvirtd: Libvirtd, words: list[str]
) -> None:
    assert libvirtd.virsh(*words, check=False).returncode != 0
    # It also tries on the primary storage, where an operator may have a pool as well.
    libvirtd.virsh("pool-create-as", "images", "dir", "--target", published.parent)
    through_images = [published.name if w == VOLUME else w for w in words]
    through_images = ["images" if w == POOL else w for w in through_images]
    assert libvirtd.virsh(*through_images, check=False).returncode != 0


def test_vol_upload_is_refused(published: Path, libvirtd: Libvirtd, directory: Path) -> None:
    junk = directory / "junk"
    junk.write_bytes(b"junk" * 1024)
    assert libvirtd.virsh("vol-upload", VOLUME, junk, POOL, check=False).returncode != 0


def test_qemu_img_commit_is_refused(published: Path, host: Host) -> None:
    overlay = make_overlay(host.vms / "overlay.qcow2", host.templates / VOLUME)
    command = ["qemu-io", "-c", "write -P 7 0 64k", overlay]
    subprocess.run(command, check=True, capture_output=True)
    result = subprocess.run(["qemu-img", "commit", overlay], capture_output=True, check=False)
    assert result.returncode != 0


def test_blockcommit_is_refused(published: Path, host: Host, libvirtd: Libvirtd) -> None:
    overlay = make_overlay(host.vms / "vm1.qcow2", host.templates / VOLUME)
    libvirtd.define(Domain("vm1", (Disk(overlay),)), host.vms)
    libvirtd.virsh("start", "vm1")
    words = ["blockcommit", "vm1", "vda", "--active", "--wait", "--pivot"]
    assert libvirtd.virsh(*words, check=False).returncode != 0


@pytest.mark.parametrize("is_published", [True, False])
def test_a_writable_disk_that_is_a_template_is_refused(
    published: Path, host: Host, libvirtd: Libvirtd, is_published: bool, small: Published
) -> None:
    if not is_published:
        host.ddfs("template", "add", "other", small.source)
    name = "small" if is_published else "other"
    disk = Disk(host.templates / f"{name}.qcow2")
    libvirtd.define(Domain("vm1", (disk,)), host.vms)
    refused = libvirtd.virsh("start", "vm1", check=False)
    assert refused.returncode != 0
    assert "qemu-img create -f qcow2" in refused.stderr


@pytest.mark.parametrize("name", ["published", "link", "pool volume", "daemon down"])
def test_a_writable_disk_that_is_the_published_file_is_refused(
    published: Path, host: Host, libvirtd: Libvirtd, name: str
) -> None:
    disk = Disk(published)
    if name == "link":
        link = host.vms / "an 'ordinary' disk.qcow2"
        link.symlink_to(published)
        disk = Disk(link)
    if name == "daemon down":
        host.stop()
    xml = Domain("vm1", (disk,)).xml
    if name == "pool volume":
        libvirtd.virsh("pool-create-as", "images", "dir", "--target", published.parent)
        source = f"<source pool='images' volume='{published.name}'/>"
        xml = xml.replace("<disk type='file'", "<disk type='volume'")
        xml = xml.replace(f'<source file="{published}"/>', source)
    (host.vms / "vm1.xml").write_text(xml)
    libvirtd.virsh("define", host.vms / "vm1.xml")
    refused = libvirtd.virsh("start", "vm1", check=False)
    assert refused.returncode != 0
    assert "qemu-img create -f qcow2" in refused.stderr
    if name == "daemon down":
        host.serve()


def test_any_other_disk_without_permission_to_write_is_none_of_ours(
    published: Path, host: Host, libvirtd: Libvirtd, small: Published
) -> None:
    disk = host.vms / "plain.qcow2"
    shutil.copyfile(small.image, disk)
    disk.chmod(0o444)
    libvirtd.define(Domain("vm1", (Disk(disk),)), host.vms)
    refused = libvirtd.virsh("start", "vm1", check=False)
    assert "template" not in refused.stderr


def test_a_read_only_disk_that_is_a_template_starts(
    published: Path, host: Host, libvirtd: Libvirtd
) -> None:
    disk = Disk(host.templates / VOLUME, is_readonly=True)
    libvirtd.define(Domain("vm1", (disk,)), host.vms)
    libvirtd.virsh("start", "vm1")


def test_the_mount_takes_nothing(host: Host, published: Path) -> None:
    for action in (
        lambda: (host.templates / "new").write_bytes(b""),
        lambda: (host.templates / VOLUME).unlink(),
        lambda: (host.templates / "folder").mkdir(),
        lambda: (host.templates / VOLUME).rename(host.templates / "moved.qcow2"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            action()
