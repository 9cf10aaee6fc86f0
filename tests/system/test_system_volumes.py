"""Templates as volumes of a libvirt pool: partitions of a loop device stand for all kinds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.domain import Disk, Domain
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.metalink import sha256_of
from lab.partitions import disk_pool, volumes, why_not
from lab.processes import wait_until
from lab.site import MIB, Published, Site

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

MakeVm = Callable[[Host, str, Path], Domain]
POOL = "blk"


@pytest.fixture
def volume_host(libvirtd: Libvirtd, directory: Path) -> Iterator[Host]:
    """A host whose daemon runs, with the pool as its second primary storage."""
    more = f'[primary.fast]\npool = "{POOL}"\n[gc]\ngrace = 0\n'
    with disk_pool(libvirtd, directory, POOL, 40 * MIB), Host(directory / "h", more=more) as host:
        host.serve()
        yield host
        libvirtd.remove_domains()


def first_bytes(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def test_a_vm_starts_on_a_volume_that_nobody_can_write_to_and_gc_takes_it_away(
    volume_host: Host, libvirtd: Libvirtd, small: Published, make_vm: MakeVm
) -> None:
    host = volume_host
    host.ddfs("template", "add", "small", small.source, "--primary", "fast")
    # The gate fetches it, and libvirtd takes in the upload while it holds the domain.
    domain = make_vm(host, "vm1", host.templates / "small.qcow2")
    libvirtd.virsh("start", "vm1")
    wait_until(lambda: small.line in domain.serial_text(), "vm1 prints its line")
    device = host.published("small")
    assert device.is_block_device()
    assert os.readlink(host.templates / "small.qcow2") == str(device)
    assert first_bytes(device, small.size) == small.image.read_bytes()
    assert list(host.state.glob("staging/**/*.part")) == []
    verified = host.ddfs("template", "verify", "small")
    assert "sound" in verified.stdout
    metrics = host.api("GET", "/metrics")[1].decode()
    assert 'ddfs_primary_bytes{primary="fast"}' in metrics
    assert 'ddfs_primary_bytes{primary="default"}' in metrics
    # Nobody writes to it: not root, and no domain that has it as its disk.
    with pytest.raises(PermissionError), device.open("r+b", buffering=0) as file:
        file.write(b"x")
    libvirtd.define(Domain("vm2", (Disk(device, "raw"),)), host.vms)
    refused = libvirtd.virsh("start", "vm2", check=False)
    assert refused.returncode != 0
    assert "must not be written to" in refused.stderr
    libvirtd.virsh("undefine", "vm2")
    # A full copy has the template's size, and a linked one its bytes.
    libvirtd.virsh("pool-define-as", "vms", "dir", "--target", host.vms)
    libvirtd.virsh("pool-start", "vms")
    host.ddfs("clone", "small", "full.qcow2", "--pool", "vms", "--full")
    assert (host.vms / "full.qcow2").read_bytes() == small.image.read_bytes()
    # It stays as long as an overlay needs it, and goes then.
    kept = json.loads(host.ddfs("gc", "--json").stdout)
    assert device.exists()
    assert "vm1" in json.dumps(kept)
    libvirtd.virsh("destroy", "vm1")
    libvirtd.virsh("undefine", "vm1")
    (host.vms / "vm1.qcow2").unlink()
    host.ddfs("gc")
    assert host.template("small")["state"] == "not-downloaded"
    assert volumes(libvirtd, POOL) == []


def disk(kind: str, source: Path, device: str = "disk", target: str = "vda") -> str:
    """A read-only disk's XML that says which *kind* its source is."""
    attribute = {"file": "file", "block": "dev"}[kind]
    bus = "sata" if device == "cdrom" else "virtio"
    return (
        f"<disk type='{kind}' device='{device}'><driver name='qemu' type='qcow2'/>"
        f"<source {attribute}='{source}'/><target dev='{target}' bus='{bus}'/><readonly/></disk>"
    )


def test_the_template_itself_is_a_disk_of_type_block_and_nothing_else(
    volume_host: Host, libvirtd: Libvirtd, small: Published, make_vm: MakeVm
) -> None:
    """QEMU's "file" driver opens no device, and says so in words of its own."""
    host, name = volume_host, volume_host.templates / "small.qcow2"
    host.ddfs("template", "add", "small", small.source, "--primary", "fast")
    make_vm(host, "vm1", name)
    sent = small.bytes_sent()
    libvirtd.define(Domain("f", (), devices=disk("file", name, "cdrom", "sda")), host.vms)
    refused = libvirtd.virsh("start", "f", check=False)
    advice = f"give the domain <disk type='block'> with <source dev='{name}'/>"
    assert advice in refused.stderr
    assert small.bytes_sent() == sent, "it is refused before it is fetched"
    libvirtd.define(Domain("b", (), devices=disk("block", name)), host.vms)
    libvirtd.virsh("start", "b")
    device = host.published("small")
    # By the device's own name as well, which the hook finds among what nobody may write to.
    libvirtd.define(Domain("d", (), devices=disk("file", device)), host.vms)
    assert advice in libvirtd.virsh("start", "d", check=False).stderr
    explained = host.ddfs("gate", "--domain", "d", check=False)
    assert (explained.returncode, advice in explained.stdout) == (1, True)
    libvirtd.define(Domain("w", (Disk(device, "raw"),)), host.vms)
    explained = host.ddfs("gate", "--domain", "w", check=False)
    assert (explained.returncode, "must not be written to" in explained.stdout) == (1, True)
    # What runs gets it as a device by itself, in a drive and as a disk.
    libvirtd.virsh("start", "vm1")
    assert "read-only disk" in host.ddfs("attach", "vm1", "small", "vdb").stdout
    drive = disk("file", name, "cdrom", "sda").replace(f"<source file='{name}'/>", "")
    libvirtd.define(Domain("c", (), devices=drive), host.vms)
    libvirtd.virsh("start", "c")
    host.ddfs("attach", "c", "small", "sda")
    assert str(name) in libvirtd.virsh("domblklist", "c").stdout


def test_a_killed_daemon_leaves_no_volume_that_nobody_owns(
    volume_host: Host, libvirtd: Libvirtd, fast_site: Site
) -> None:
    host = volume_host
    image = fast_site.publish_raw("large", size=24 * MIB)
    host.ddfs("template", "add", "large", image.source, "--primary", "fast")
    host.api_json("POST", "/v1/prefetch", {"names": ["large"]})
    staging = host.state / "staging"
    wait_until(lambda: list(staging.glob("**/*.volume")), "the volume is being made")
    host.kill()
    assert not [line for line in host.tail().splitlines() if "Traceback" in line]
    host.serve()
    host.ddfs("prefetch", "large")
    assert len(volumes(libvirtd, POOL)) == 1
    device = host.published("large")
    assert first_bytes(device, image.size) == image.image.read_bytes()
    # Behind the image are zeros, whatever the disk had there.
    rest = first_bytes(device, 32 * MIB)[image.size : -4096]
    assert rest == bytes(len(rest))
    # A daemon that is started again knows it, and one that finds it gone fetches anew.
    host.stop()
    host.serve()
    assert host.template("large")["state"] == "downloaded"
    assert host.published("large") == device
    # A pool that somebody undefines is defined again, and nothing in it is lost.
    host.stop()
    libvirtd.virsh("pool-destroy", POOL)
    libvirtd.virsh("pool-undefine", POOL)
    refused = host.ddfs("serve", check=False)
    assert (refused.returncode, "ddfs doctor --fix" in refused.stderr) == (2, True)
    mended = host.ddfs("doctor", "--fix", check=False).stdout
    assert f"libvirt had no pool {POOL} any more, and has it again" in mended
    host.serve()
    assert host.published("large") == device
    assert host.template("large")["state"] == "downloaded"
    host.ddfs("template", "remove", "large", "--purge")
    assert volumes(libvirtd, POOL) == []


def test_damage_on_a_device_is_found_and_mended(volume_host: Host, small: Published) -> None:
    host = volume_host
    host.ddfs("template", "add", "small", small.source, "--primary", "fast")
    host.ddfs("prefetch", "small")
    device = host.published("small")
    subprocess.run(["blockdev", "--setrw", device], check=True)
    with device.open("r+b", buffering=0) as file:
        file.seek(3 * MIB + 12345)
        file.write(b"damage")
    damaged = host.ddfs("template", "verify", "small", check=False)
    assert (damaged.returncode, f"bytes {3 * MIB}-{4 * MIB - 1}" in damaged.stdout) == (4, True)
    sent = small.bytes_sent()
    host.ddfs("template", "verify", "small", "--repair")
    assert small.bytes_sent() - sent < 2 * MIB
    assert first_bytes(device, small.size) == small.image.read_bytes()
    with pytest.raises(PermissionError), device.open("r+b", buffering=0) as file:
        file.write(b"x")


def test_a_copy_on_a_second_storage_costs_no_download(
    volume_host: Host, libvirtd: Libvirtd, small: Published
) -> None:
    host = volume_host
    host.ddfs("template", "add", "small", small.source)
    host.ddfs("prefetch", "small")
    sent = small.bytes_sent()
    host.ddfs("prefetch", "small", "--primary", "fast")
    assert small.bytes_sent() == sent
    (name,) = volumes(libvirtd, POOL)
    assert first_bytes(Path("/dev") / name, small.size) == small.image.read_bytes()
    assert sha256_of(host.published("small")) == small.sha256
