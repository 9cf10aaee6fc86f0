"""Every way in which a domain can use a template that is not here yet, up to the boot."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from lab.bootimage import boot_sector
from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.metalink import sha256_of
from lab.processes import wait_until
from lab.site import MIB, Published, Site

from ddfs.primary.kernel import set_immutable

# A kernel as the boot protocol has it (Documentation/arch/x86/boot.rst): its second sector
# jumps over a header, and prints a line on the first serial port, in real mode. The code is
# that of the boot sector (lab/bootimage.py), with its text behind itself.
KERNEL_LINE = "This is a kernel."
HEADER_LENGTH = 0x60
CODE = bytes.fromhex("fa0e1fbe0000fcac84c0741288c4bafd03eca82074fb88e0baf803eeebe9f4ebfd")


def write_kernel(path: Path) -> Path:
    code = bytearray(CODE)
    struct.pack_into("<H", code, 4, HEADER_LENGTH + len(code))
    header = bytearray(HEADER_LENGTH)
    header[:2] = bytes([0xEB, HEADER_LENGTH - 2])
    header[2:6] = b"HdrS"
    struct.pack_into("<H", header, 6, 0x0202)
    header[0x11] = 1  # the rest is loaded at 1 MiB
    setup = bytes(header + code) + KERNEL_LINE.encode() + b"\r\n\0"
    first = bytearray(boot_sector("This is no disk."))
    first[0x1F1] = 4  # sectors of setup
    path.write_bytes(bytes(first) + setup.ljust(4 * 512, b"\0") + bytes(32 * 1024))
    return path


@pytest.fixture
def ready(host: Host, libvirtd: Libvirtd, small: Published) -> Host:
    libvirtd.install_hook(host.hook())
    host.ddfs("template", "add", "small", small.source)
    return host


def boots(
    host: Host, libvirtd: Libvirtd, domain: Domain, line: str, *, name: str = "small"
) -> None:
    """It starts, and that fetched the template."""
    assert host.template(name)["state"] == "not-downloaded"
    libvirtd.define(domain, host.vms)
    libvirtd.virsh("start", domain.name)
    assert host.template(name)["state"] == "downloaded"
    wait_until(lambda: line in domain.serial_text(), "it boots")


def overlay(path: Path, backing: str, *, backing_format: str = "qcow2") -> Path:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", backing_format, "-u", "-b", backing]
    subprocess.run([*command, path, "8M"], check=True)
    return path


@pytest.mark.parametrize("way", ["deep", "relative", "json", "json nested", "link", "quotes"])
def test_an_overlay(ready: Host, libvirtd: Libvirtd, small: Published, way: str) -> None:
    template, vms = ready.templates / "small.qcow2", ready.vms
    top = vms / "vm1.qcow2"
    if way == "deep":
        below = str(template)
        for number in range(20):
            below = str(overlay(vms / f"layer{number}.qcow2", below))
        overlay(top, "layer19.qcow2")
    elif way == "relative":
        overlay(top, "../mnt/templates/small.qcow2")
    elif way == "json":
        flat = {"file.driver": "file", "file.filename": str(template)}
        overlay(top, "json:" + json.dumps(flat))
    elif way == "json nested":
        file = {"driver": "file", "filename": str(template)}
        overlay(top, "json:" + json.dumps({"file": file}))
    elif way == "link":
        (vms / "library").symlink_to(ready.templates)
        overlay(top, "library/small.qcow2")
    else:
        top = overlay(vms / "Platte \"grün\" & 'ü' <1>.qcow2", str(template))
    name = "Grüße, 'vm' \"1\" & <2>" if way == "quotes" else "vm1"
    domain = Domain(name, (Disk(top),), vms / "serial")
    (vms / "vm1.xml").write_text(domain.xml)
    assert ready.template("small")["state"] == "not-downloaded"
    libvirtd.virsh("define", vms / "vm1.xml")
    libvirtd.virsh("start", name)
    wait_until(lambda: small.line in domain.serial_text(), "it boots")


def test_an_explicit_backing_store(ready: Host, libvirtd: Libvirtd, small: Published) -> None:
    top = overlay(ready.vms / "vm1.qcow2", str(ready.templates / "small.qcow2"))
    store = (
        "<backingStore type='file'><format type='qcow2'/>"
        f"<source file='{ready.templates}/small.qcow2'/><backingStore/></backingStore>"
    )
    disk = (
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{top}'/>"
        f"{store}<target dev='vda' bus='virtio'/></disk>"
    )
    domain = Domain("vm1", (), ready.vms / "serial", devices=disk)
    boots(ready, libvirtd, domain, small.line)


def test_a_loop_is_refused(ready: Host, libvirtd: Libvirtd) -> None:
    overlay(ready.vms / "a.qcow2", "b.qcow2")
    overlay(ready.vms / "b.qcow2", "a.qcow2")
    libvirtd.define(Domain("vm1", (Disk(ready.vms / "a.qcow2"),)), ready.vms)
    assert libvirtd.virsh("start", "vm1", check=False).returncode != 0
    explained = ready.ddfs("gate", "--domain", "vm1", check=False)
    assert "is its own backing file" in explained.stdout


def test_a_raw_template_under_an_overlay_and_as_a_cdrom(
    ready: Host, libvirtd: Libvirtd, fast_site: Site
) -> None:
    raw = fast_site.publish_raw("rawdisk", size=4 * MIB)
    ready.ddfs("template", "add", "rawdisk", raw.source, "--format", "raw")
    template = ready.templates / "rawdisk.img"
    top = make_overlay(
        ready.vms / "vm1.qcow2", template, backing_format="raw", virtual_size=raw.size
    )
    cd = Disk(template, format="raw", is_readonly=True, device="cdrom")
    domain = Domain("vm1", (Disk(top), cd), ready.vms / "serial")
    boots(ready, libvirtd, domain, raw.line, name="rawdisk")


def test_a_kernel_and_an_initrd(ready: Host, libvirtd: Libvirtd, fast_site: Site) -> None:
    images = fast_site.directory / "images"
    images.mkdir(exist_ok=True)
    for name in ("kernel", "initrd"):
        image = write_kernel(images / f"{name}.img")
        ready.ddfs("template", "add", name, fast_site.publish_file(image).source, "--format", "raw")
    names = ("kernel", "initrd")
    boot = "".join(f"<{name}>{ready.templates}/{name}.img</{name}>" for name in names)
    domain = Domain("vm1", (), ready.vms / "serial", boot=boot)
    boots(ready, libvirtd, domain, KERNEL_LINE, name="kernel")
    assert ready.template("initrd")["state"] == "downloaded"
    # Again, when the names lead to the published files, which libvirt opens for writing.
    libvirtd.virsh("destroy", "vm1")
    for name in names:
        with ready.published(name).open("rb") as file:
            set_immutable(file.fileno(), True)
    libvirtd.virsh("start", "vm1")
    assert ready.published("kernel").stat().st_mode & 0o777 == 0o444
    ready.ddfs("template", "verify", "kernel")


def test_a_volume_that_libvirt_was_not_told_of(
    ready: Host, libvirtd: Libvirtd, fast_site: Site
) -> None:
    """Its pool is refreshed some time after a registration."""
    ready.ddfs("pool", "define")
    for number in range(3):
        raw = fast_site.publish_raw(f"late{number}", size=MIB, seed=40 + number)
        ready.ddfs("template", "add", f"late{number}", raw.source)
    cd = (
        "<disk type='volume' device='cdrom'><source pool='ddfs' volume='late2.img'/>"
        "<target dev='sda' bus='sata'/><readonly/></disk>"
    )
    libvirtd.define(Domain("vm1", (), ready.vms / "serial", devices=cd), ready.vms)
    assert ready.ddfs("start", "vm1").stdout == "vm1: started\n"


def test_a_volume_of_another_pool(ready: Host, libvirtd: Libvirtd, small: Published) -> None:
    overlay(ready.vms / "a b.qcow2", str(ready.templates / "small.qcow2"))
    libvirtd.virsh("pool-create-as", "vms", "dir", "--target", ready.vms)
    disk = (
        "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/>"
        "<source pool='vms' volume='a b.qcow2'/><target dev='vda' bus='virtio'/></disk>"
    )
    domain = Domain("vm1", (), ready.vms / "serial", devices=disk)
    boots(ready, libvirtd, domain, small.line)


def forget_bytes(host: Host, name: str) -> None:
    """Somebody deletes the published file."""
    published = host.published(name)
    subprocess.run(["chattr", "-i", published], check=False, capture_output=True)
    published.unlink()


@pytest.mark.parametrize("way", ["managedsave", "save"])
def test_what_was_saved_goes_on_when_its_template_is_here_again(
    ready: Host, libvirtd: Libvirtd, small: Published, way: str
) -> None:
    top = overlay(ready.vms / "vm1.qcow2", str(ready.templates / "small.qcow2"))
    domain = Domain("vm1", (Disk(top),), ready.vms / "serial")
    boots(ready, libvirtd, domain, small.line)
    image = ready.vms / "memory"
    libvirtd.virsh(way, "vm1", *([image] if way == "save" else []))
    forget_bytes(ready, "small")
    requests = small.requests()
    libvirtd.virsh(*(["restore", image] if way == "save" else ["start", "vm1"]))
    assert small.requests() > requests
    assert ready.template("small")["state"] == "downloaded"
    assert libvirtd.virsh("domstate", "vm1").stdout.strip() == "running"


def test_a_snapshot_and_its_next_start(ready: Host, libvirtd: Libvirtd, small: Published) -> None:
    top = overlay(ready.vms / "vm1.qcow2", str(ready.templates / "small.qcow2"))
    domain = Domain("vm1", (Disk(top),), ready.vms / "serial")
    boots(ready, libvirtd, domain, small.line)
    libvirtd.virsh("snapshot-create-as", "vm1", "one", "--disk-only", "--no-metadata")
    libvirtd.virsh("destroy", "vm1")
    forget_bytes(ready, "small")
    libvirtd.virsh("start", "vm1")
    assert ready.template("small")["state"] == "downloaded"


@pytest.mark.parametrize("is_published", [False, True], ids=["unpublished", "published"])
def test_volumes_out_of_the_template_pool(
    ready: Host, libvirtd: Libvirtd, small: Published, is_published: bool
) -> None:
    """Whole, whatever is here, and of the right bytes."""
    if is_published:
        ready.ddfs("prefetch", "small")
    ready.ddfs("pool", "define", "--name", "templates")
    libvirtd.virsh("pool-refresh", "templates")
    libvirtd.virsh("pool-create-as", "vms", "dir", "--target", ready.vms)
    got = ready.vms / "downloaded"
    libvirtd.virsh("vol-download", "small.qcow2", got, "templates")
    assert sha256_of(got) == small.sha256
    xml = ready.vms / "volume.xml"
    xml.write_text(
        "<volume><name>made</name><capacity>8388608</capacity>"
        "<target><format type='qcow2'/></target></volume>"
    )
    libvirtd.virsh("vol-create-from", "vms", xml, "small.qcow2", "--inputpool", "templates")
    command = ["qemu-img", "compare", "-q", small.image, ready.vms / "made"]
    assert subprocess.run(command, check=False).returncode == 0
    # Into the pool itself nothing goes.
    refused = libvirtd.virsh("vol-clone", "small.qcow2", "new", "templates", check=False)
    assert refused.returncode != 0
    assert sorted(path.name for path in ready.templates.iterdir()) == ["small.qcow2"]


def test_a_domain_document_that_is_absurd(ready: Host) -> None:
    deep = ready.vms / "deep.xml"
    deep.write_text("<domain>" + "<x>" * 100_000)
    large = ready.vms / "large.xml"
    large.write_text("<domain>" + " " * (6 * MIB) + "</domain>")
    shutil.copyfile(large, ready.vms / "huge.xml")
    with (ready.vms / "huge.xml").open("a") as file:
        file.write(" " * (12 * MIB))
    for name, code, says in (("deep", 2, "levels"), ("large", 0, ""), ("huge", 2, "larger")):
        done = ready.ddfs("gate", "--xml", ready.vms / f"{name}.xml", check=False)
        assert done.returncode == code, done.stderr
        assert says in done.stderr
        assert done.stderr.count("\n") == (code != 0)
