"""Disks made from templates: overlays, copies, and a domain that is installed anew."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lab.domain import Disk, Domain
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.metalink import sha256_of
from lab.processes import wait_until
from lab.site import MIB, Published, Site

GIB = 1024 * MIB


@pytest.fixture
def vms(host: Host, libvirtd: Libvirtd, small: Published) -> Path:
    """The directory of a pool called ``vms``; the hook is installed, ``small`` registered."""
    libvirtd.install_hook(host.hook())
    libvirtd.virsh("pool-create-as", "vms", "dir", "--target", host.vms)
    host.ddfs("template", "add", "small", small.source)
    return host.vms


def clone(host: Host, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return host.ddfs("clone", "small", *words, "--pool", "vms", check=check)


def info(path: Path) -> dict[str, Any]:
    command = ["qemu-img", "info", "-U", "--output=json", path]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True).stdout
    )
    return found


def boots(host: Host, libvirtd: Libvirtd, disk: Path, line: str) -> Domain:
    domain = Domain("vm1", (Disk(disk),), host.vms / "vm1.serial")
    libvirtd.define(domain, host.vms)
    libvirtd.virsh("start", "vm1")
    wait_until(lambda: line in domain.serial_text(), "it boots")
    return domain


@pytest.mark.parametrize("name", ["vm1.qcow2", "Grüße, an 'alle' \"hier\" #1 $x;y:z.qcow2"])
def test_an_overlay_costs_nothing_and_boots(
    host: Host, libvirtd: Libvirtd, vms: Path, small: Published, name: str
) -> None:
    before = small.requests()
    clone(host, name, "--size", "1G")
    assert small.requests() == before
    assert host.template("small")["state"] == "not-downloaded"
    disk = vms / name
    assert disk.stat().st_mode & 0o777 == 0o600
    found = info(disk)
    assert found["virtual-size"] == GIB
    assert found["full-backing-filename"] == str(host.templates / "small.qcow2")
    # libvirt knows it, without being asked to look.
    assert libvirtd.virsh("vol-path", name, "vms").stdout.strip() == str(disk)
    boots(host, libvirtd, disk, small.line)
    # What the name stands for outlives the daemon.
    libvirtd.virsh("destroy", "vm1")
    host.stop()
    libvirtd.virsh("start", "vm1")


def test_a_size_that_nothing_vouches_for_is_looked_at_first(
    host: Host, libvirtd: Libvirtd, vms: Path, fast_site: Site
) -> None:
    image = fast_site.publish("unvouched", size=4 * MIB, piece_length=None, seed=9)
    host.ddfs("template", "add", "unvouched", image.source)
    assert host.template("unvouched")["head_is_verified"] is False
    status, answer = host.api(
        "POST", "/v1/clones", {"template": "unvouched", "volume": "vm1.qcow2", "pool": "vms"}
    )
    assert (status, json.loads(answer)["kind"]) == (503, "not-here-yet")
    host.ddfs("clone", "unvouched", "vm1.qcow2", "--pool", "vms")
    assert host.template("unvouched")["state"] == "downloaded"
    assert info(vms / "vm1.qcow2")["virtual-size"] == 4 * MIB
    boots(host, libvirtd, vms / "vm1.qcow2", image.line)


def test_a_full_copy_needs_the_template_no_more(
    host: Host, libvirtd: Libvirtd, vms: Path, small: Published
) -> None:
    clone(host, "same.qcow2", "--full")
    assert sha256_of(vms / "same.qcow2") == small.sha256
    clone(host, "vm1.qcow2", "--full", "--size", "100M")
    assert info(vms / "vm1.qcow2")["virtual-size"] == 100 * MIB
    host.ddfs("template", "remove", "small", "--purge")
    boots(host, libvirtd, vms / "vm1.qcow2", small.line)


def test_what_a_disk_without_a_domain_stands_on_is_not_purged(
    host: Host, vms: Path, small: Published
) -> None:
    clone(host, "vm1.qcow2")
    host.ddfs("prefetch", "small")
    published = host.published("small")
    refused = host.ddfs("template", "remove", "small", "--purge", check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"used by {vms / 'vm1.qcow2'};" in refused.stderr
    assert host.published("small") == published
    (vms / "vm1.qcow2").unlink()
    host.ddfs("template", "remove", "small", "--purge")
    assert not published.exists()


def test_a_domain_is_installed_anew_with_nothing_downloaded(
    host: Host, libvirtd: Libvirtd, vms: Path, small: Published
) -> None:
    clone(host, "vm1.qcow2", "--size", "1G")
    disk = vms / "vm1.qcow2"
    boots(host, libvirtd, disk, small.line)
    fetched, before = small.requests(), disk.stat().st_ino
    running = clone(host, "vm1.qcow2", "--replace", check=False)
    assert running.returncode == 2
    assert "domain vm1 runs on it" in running.stderr
    libvirtd.virsh("managedsave", "vm1")
    saved = clone(host, "vm1.qcow2", "--replace", check=False)
    assert "virsh managedsave-remove" in saved.stderr
    libvirtd.virsh("managedsave-remove", "vm1")
    assert disk.stat().st_ino == before
    subprocess.run(["qemu-io", "-c", "write -P 0 0 64k", disk], check=True, capture_output=True)
    disk.chmod(0o640)
    assert "made anew" in clone(host, "vm1.qcow2", "--replace").stdout
    assert disk.stat().st_mode & 0o777 == 0o640
    assert info(disk)["virtual-size"] == GIB, "it keeps its size"
    (host.vms / "vm1.serial").unlink()
    libvirtd.virsh("undefine", "vm1")
    boots(host, libvirtd, disk, small.line)
    assert small.requests() == fetched


def test_a_disk_with_snapshots_inside_is_not_replaced(host: Host, vms: Path) -> None:
    clone(host, "vm1.qcow2")
    disk = vms / "vm1.qcow2"
    subprocess.run(["qemu-img", "snapshot", "-c", "before", disk], check=True)
    before = disk.read_bytes()
    refused = clone(host, "vm1.qcow2", "--replace", check=False)
    assert refused.returncode == 2
    assert "it has 1 snapshots inside" in refused.stderr
    assert disk.read_bytes() == before
    subprocess.run(["qemu-img", "snapshot", "-d", "before", disk], check=True)
    assert "made anew" in clone(host, "vm1.qcow2", "--replace").stdout


def test_what_another_disk_stands_on_is_not_replaced(
    host: Host, libvirtd: Libvirtd, vms: Path, small: Published
) -> None:
    clone(host, "base.qcow2")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-u"]
    subprocess.run([*command, "-b", "base.qcow2", vms / "top.qcow2", "8M"], check=True)
    libvirtd.define(Domain("vm1", (Disk(vms / "top.qcow2"),)), host.vms)
    refused = clone(host, "base.qcow2", "--replace", check=False)
    assert refused.returncode == 2
    assert "another disk of domain vm1 stands on it" in refused.stderr


def test_what_an_image_of_no_domain_stands_on_is_not_replaced(host: Host, vms: Path) -> None:
    clone(host, "base.qcow2")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-u"]
    subprocess.run([*command, "-b", "base.qcow2", vms / "middle.qcow2", "8M"], check=True)
    subprocess.run([*command, "-b", vms / "middle.qcow2", vms / "top.qcow2", "8M"], check=True)
    before = (vms / "base.qcow2").read_bytes()
    refused = clone(host, "base.qcow2", "--replace", check=False)
    assert refused.returncode == 2
    assert "middle.qcow2 stands on it; top.qcow2 stands on it" in refused.stderr
    assert (vms / "base.qcow2").read_bytes() == before
    assert "made anew" in clone(host, "top.qcow2", "--replace").stdout


def test_what_cannot_be(host: Host, libvirtd: Libvirtd, vms: Path, small: Published) -> None:
    (vms / "taken.qcow2").write_bytes(b"somebody's work")
    libvirtd.virsh("pool-define-as", "off", "dir", "--target", vms / "off")
    host.ddfs("pool", "define", "--name", "templates")
    for words, code, says in (
        (["taken.qcow2"], 4, "--replace"),
        (["a.qcow2", "--size", "1M"], 2, "cannot be made from small.qcow2"),
        (["../a.qcow2"], 2, "cannot be a volume's name"),
        (["a\nb"], 2, "cannot be a volume's name"),
        (["x" * 300], 2, "cannot be a volume's name"),
        (["a.qcow2", "--pool", "none"], 4, "no storage pool called 'none'"),
        (["a.qcow2", "--pool", "off"], 4, "pool-start off"),
        (["a.qcow2", "--pool", "templates"], 2, "the template pool itself"),
    ):
        failed = (
            clone(host, *words, check=False)
            if "--pool" not in words
            else host.ddfs("clone", "small", *words, check=False)
        )
        assert failed.returncode == code, failed.stderr
        assert says in failed.stderr
        assert failed.stderr.count("\n") == 1
    assert sorted(path.name for path in vms.iterdir()) == ["taken.qcow2"]
    assert (vms / "taken.qcow2").read_bytes() == b"somebody's work"
    assert "Traceback" not in host.log.read_text()


def test_a_full_disk_keeps_the_old_one(
    host: Host, libvirtd: Libvirtd, small: Published, fast_site: Site, directory: Path
) -> None:
    """And no part of the new one."""
    pool = directory / "pool"
    pool.mkdir()
    subprocess.run(["mount", "-n", "-t", "tmpfs", "-o", "size=4m", "none", pool], check=True)
    try:
        libvirtd.virsh("pool-create-as", "tight", "dir", "--target", pool)
        host.ddfs("template", "add", "small", small.source)
        (pool / "vm1.qcow2").write_bytes(b"old")
        words = ("clone", "small", "vm1.qcow2", "--pool", "tight", "--full", "--replace")
        failed = host.ddfs(*words, check=False)
        assert failed.returncode == 4
        assert "no room" in failed.stderr
        assert [path.name for path in pool.iterdir()] == ["vm1.qcow2"]
        assert (pool / "vm1.qcow2").read_bytes() == b"old"
    finally:
        libvirtd.virsh("pool-destroy", "tight")
        subprocess.run(["umount", "-n", "-l", pool], check=True)
