"""Who uses a published file: real images by qemu-img, and everything that cannot be looked at."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ddfs.image import openers
from ddfs.image.domain import PoolTargets
from ddfs.image.openers import processes_with_open
from ddfs.image.paths import Mountpoint
from ddfs.keeping import uses as looked
from ddfs.keeping.uses import Pool, find_uses

CONTENT = "sha-256:" + "ab" * 32


@dataclass
class Known:
    """What libvirt says."""

    documents: dict[str, bytes] = field(default_factory=dict)
    directories: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)


@dataclass
class Lab:
    """A primary storage with one published template, and a directory of virtual machines."""

    top: Path
    published: Path
    mount: Path
    vms: Path

    def look(self, known=None, **options):
        pool = Pool(Mountpoint(str(self.mount)), f"{self.mount}/templates", {"base.qcow2": CONTENT})
        return find_uses(known or Known(), pool, [str(self.published)], **options)

    def users(self, known=None):
        uses = self.look(known)
        assert not uses.obstacles, uses.obstacles
        return uses.of_path.get(str(self.published), [])


def make(path, backing=None, size="1M", backing_format="qcow2"):
    under = ["-b", backing, "-F", backing_format, "-u"] if backing else []
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *map(str, under), str(path), size]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def lab(tmp_path):
    for name in ("images", "mnt", "vms"):
        (tmp_path / name).mkdir()
    published = make(tmp_path / "images" / "base@abab.qcow2")
    return Lab(tmp_path, published, tmp_path / "mnt", tmp_path / "vms")


def disk(path, driver="qcow2", extra=""):
    return (
        f"<disk type='file'><driver type='{driver}'/><source file='{path}'/>"
        f"<target dev='vda'/>{extra}</disk>"
    )


def domain(*disks):
    return f"<domain><name>x</name><devices>{''.join(disks)}</devices></domain>".encode()


def test_uses_an_overlay_in_a_pool_by_the_published_path(lab):
    assert lab.users() == []
    overlay = make(lab.vms / "vm.qcow2", lab.published)
    assert lab.users(Known(directories={str(lab.vms): "pool vms"})) == [str(overlay)]


def test_uses_an_overlay_beside_the_template_needs_no_pool(lab):
    overlay = make(lab.published.parent / "vm.qcow2", lab.published.name)
    assert lab.users() == [str(overlay)]


def test_uses_by_the_name_in_the_template_pool_count_for_the_content(lab):
    make(lab.vms / "vm.qcow2", lab.mount / "templates" / "base.qcow2")
    known = Known(documents={"domain vm": domain(disk(lab.vms / "vm.qcow2"))})
    uses = lab.look(known)
    assert not uses.obstacles
    assert uses.of_path == {}
    assert "domain vm" in uses.of_content[CONTENT]
    # Another name in the mount is none of ours.
    make(lab.vms / "vm.qcow2", lab.mount / "templates" / "other.qcow2")
    assert lab.look(known).of_content == {}


@pytest.mark.parametrize(
    ("name", "is_used"),
    [("base.qcow2", True), ("base@2.qcow2", True), ("base.img", False), ("other.qcow2", False)],
)
def test_uses_by_a_name_that_was_removed_count_for_what_it_may_have_been(lab, name, is_used):
    overlay = make(lab.vms / "vm.qcow2", lab.mount / "templates" / name)
    pool = Pool(Mountpoint(str(lab.mount)), f"{lab.mount}/templates", {"new.qcow2": CONTENT})
    mine, other = (make(lab.published.with_name(f"base@{12 * c}.qcow2")) for c in "cd")
    known = Known(directories={str(lab.vms): "pool vms"})
    uses = find_uses(known, pool, [str(mine), str(other)])
    both = {str(mine): [str(overlay)], str(other): [str(overlay)]}
    assert uses.of_path == (both if is_used else {})
    # One that a name has is kept for that name.
    pool.contents["base@3.qcow2"] = "sha-256:" + "d" * 64
    assert str(other) not in find_uses(known, pool, [str(mine), str(other)]).of_path


def test_uses_a_long_chain_with_relative_and_json_names(lab):
    below = lab.published
    for number in range(5):
        name = f"{number}.qcow2"
        backing = f'json:{{"driver":"qcow2","file":{{"filename":"{below}"}}}}'
        below = make(lab.vms / name, backing if number % 2 else os.path.relpath(below, lab.vms))
    known = Known(documents={"domain vm": domain(disk(below))})
    assert "domain vm" in lab.users(known)


def test_uses_an_overlay_that_lies_beside_a_disk_of_a_known_domain(lab):
    make(lab.vms / "vm.qcow2")
    forgotten = make(lab.vms / "forgotten.qcow2", lab.published)
    known = Known(documents={"domain vm": domain(disk(lab.vms / "vm.qcow2"))})
    assert lab.users(known) == [str(forgotten)]


def test_uses_through_symlinks_and_other_names_of_the_directory(lab):
    (lab.top / "alias").symlink_to(lab.published.parent)
    make(lab.vms / "vm.qcow2", lab.top / "alias" / lab.published.name)
    assert lab.users(Known(images={str(lab.vms / "vm.qcow2"): "volume x"})) == ["volume x"]
    (lab.vms / "vm.qcow2").unlink()
    (lab.vms / "link.qcow2").symlink_to(lab.published)
    assert lab.users(Known(directories={str(lab.vms): "pool"})) == [str(lab.vms / "link.qcow2")]


def test_uses_the_published_file_as_a_cdrom(lab):
    known = Known(documents={"domain vm": domain(disk(lab.published, "raw", "<readonly/>"))})
    assert lab.users(known) == ["domain vm"]


def test_uses_a_raw_disk_is_not_believed_to_stand_on_anything(lab):
    """A guest writes what it wants into its raw disk; but as a file of a directory, which
    anybody may use as qcow2 next, its header counts."""
    fake = make(lab.vms / "raw.img", lab.published)
    assert lab.users(Known(directories={str(lab.vms): "pool"})) == [str(fake)]


def test_uses_a_hard_link_does_not_need_the_published_name(lab):
    os.link(lab.published, lab.published.parent / "copy.qcow2")
    assert lab.users() == []


def test_uses_an_open_descriptor_counts(lab):
    with lab.published.open("rb") as file:
        reader = subprocess.Popen(["sleep", "60"], stdin=file)
    try:
        assert lab.users() == [f"process {reader.pid}"]
    finally:
        reader.kill()
        reader.wait()


# Opens and closes one descriptor for ever, and has standard input open behind that.
RESTLESS = """
import os
os.dup2(0, 100)
os.dup2(1, 0)
print("ready", flush=True)
while True:
    os.dup2(1, 50)
    os.close(50)
"""


def test_uses_a_descriptor_that_is_closed_meanwhile_hides_no_other(lab, monkeypatch):
    for module in (openers, looked):
        monkeypatch.setattr(module, "PASSING_SECONDS", 0.0)
    with lab.published.open("rb") as file:
        restless = subprocess.Popen(
            [sys.executable, "-c", RESTLESS], stdin=file, stdout=subprocess.PIPE
        )
    try:
        restless.stdout.readline()
        for _ in range(50):
            assert lab.users() == [f"process {restless.pid}"]
            [opened] = processes_with_open({str(lab.published)})
            assert opened.startswith(f"process {restless.pid} ")
    finally:
        restless.kill()
        restless.communicate()


def test_uses_who_has_it_open_in_passing_is_no_user(lab, monkeypatch):
    """As libvirtd has each file of a pool that it refreshes."""
    passing = lab.published.open("rb")
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=passing, pass_fds=())
    passing.close()

    def pass_by(_seconds):
        holder.kill()
        holder.wait()

    monkeypatch.setattr(looked.time, "sleep", pass_by)
    assert lab.users() == []
    assert holder.poll() is not None


@pytest.mark.parametrize(
    ("document", "obstacle"),
    [
        (b"<domain", "domain vm: "),
        (domain(disk("/nowhere/at/all.qcow2")), "domain vm: /nowhere/at/all.qcow2 is not there"),
        (
            domain("<disk type='volume'><source pool='lost' volume='v'/></disk>"),
            "domain vm: v in pool lost is not known",
        ),
    ],
)
def test_uses_what_a_domain_says_and_nobody_can_look_at_is_an_obstacle(lab, document, obstacle):
    uses = lab.look(Known(documents={"domain vm": document}), pools=PoolTargets([]))
    assert len(uses.obstacles) == 1
    assert uses.obstacles[0].startswith(obstacle)
    assert "\n" not in uses.obstacles[0]


def test_uses_an_image_that_makes_no_sense_is_an_obstacle(lab):
    bad = make(lab.vms / "bad.qcow2")
    with bad.open("r+b") as image:
        image.seek(4)
        image.write(b"\0\0\0\x09")
    [obstacle] = lab.look(Known(directories={str(lab.vms): "pool"})).obstacles
    assert obstacle == f"{bad}: unknown qcow2 version 9"


def test_uses_a_missing_backing_file_or_directory_is_an_obstacle(lab):
    make(lab.vms / "vm.qcow2", lab.vms / "gone.qcow2")
    [obstacle] = lab.look(Known(directories={str(lab.vms): "pool"})).obstacles
    assert obstacle == f"{lab.vms}/vm.qcow2: {lab.vms}/gone.qcow2 is not there"
    [obstacle] = lab.look(Known(directories={"/nowhere": "pool old"})).obstacles
    assert obstacle == "pool old: /nowhere is not there"
    assert lab.look(Known(obstacles=["pool x is not active"])).obstacles == (
        "pool x is not active",
    )


def test_uses_an_empty_drive_or_a_missing_raw_file_is_no_obstacle(lab):
    empty = "<disk type='file' device='cdrom'><target dev='sda'/></disk>"
    known = Known(documents={"domain vm": domain(empty, disk("/nowhere/cd.iso", "raw"))})
    assert lab.users(known) == []


def test_uses_loops_and_devices_end(lab):
    a, b = lab.vms / "a.qcow2", lab.vms / "b.qcow2"
    make(a, b)
    make(b, a)
    os.mkfifo(lab.vms / "fifo")
    known = Known(documents={"domain vm": domain(disk(a), disk("/dev/null", "qcow2"))})
    assert lab.users(known) == []


def test_a_published_device_is_used_by_what_names_or_opens_it_and_not_by_its_pool(
    lab, tmp_path, make_device
):
    device, other = make_device(lab.published), make_device(lab.published)
    # As LVM's: a link in a directory of the volume group.
    link = tmp_path / "vg-template"
    link.symlink_to(device)

    def users(known):
        pool = Pool(Mountpoint(str(lab.mount)), f"{lab.mount}/templates", {})
        uses = find_uses(known, pool, [str(link)])
        assert not uses.obstacles, uses.obstacles
        return uses.of_path.get(str(link), [])

    listed = Known(images={str(device): "pool vg, volume a", str(other): "pool vg, volume b"})
    assert users(listed) == []
    make(lab.vms / "overlay.qcow2", link)
    named = {"domain a": domain(disk(lab.vms / "overlay.qcow2")), "domain b": domain(disk(device))}
    found = users(Known(documents=named, images=listed.images))
    assert {"domain a", "domain b"} <= set(found) <= {*named, str(lab.vms / "overlay.qcow2")}
    (lab.vms / "overlay.qcow2").unlink()
    with link.open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as process:
        assert users(listed) == [f"process {process.pid}"]
        process.kill()
