"""Templates that are published packed: a VM boots from what comes out."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.metalink import MIB, sha256_of, write_metalink
from lab.processes import wait_until
from lab.readers import Readers
from lab.site import Published, Site

from tests.fetch.nfs_server import nfs_server, why_not

MakeVm = Callable[[Host, str, Path], Domain]


def publish_packed(shop: Site, image: Published, suffix: str, packed: bytes) -> str:
    """The address of a metalink for the packed image on all mirrors."""
    name = f"{image.image.name}.{suffix}"
    for mirror in shop.mirrors:
        (mirror.root / name).write_bytes(packed)
    urls = [mirror.url(name) for mirror in shop.mirrors]
    write_metalink(shop.documents.root / f"{name}.meta4", shop.mirrors[0].root / name, urls)
    return shop.documents.url(f"{name}.meta4")


def test_a_vm_starts_from_a_packed_template(
    host: Host, libvirtd: Libvirtd, fast_site: Site, small: Published, make_vm: MakeVm
) -> None:
    """xz says how large it unpacks: the template is a file before a byte of it is here."""
    source = publish_packed(
        fast_site, small, "xz", lzma.compress(small.image.read_bytes(), preset=0)
    )
    host.ddfs("template", "add", "small", source)
    template = host.templates / "small.qcow2"
    assert template.stat().st_size == small.size
    host.ddfs("pool", "define", "--name", "templates")
    libvirtd.virsh("pool-refresh", "templates")
    assert "small.qcow2" in libvirtd.virsh("vol-list", "templates").stdout
    assert host.template("small")["state"] == "not-downloaded"
    domain = make_vm(host, "vm1", template)
    libvirtd.virsh("start", "vm1")
    wait_until(lambda: small.line in domain.serial_text(), "vm1 prints its line")
    assert sha256_of(host.published("small")) == small.sha256
    assert Readers(template).results()[0].sha256 == small.sha256


def test_where_nobody_knows_the_size_the_name_leads_to_the_image_once_it_is_there(
    host: Host, libvirtd: Libvirtd, fast_site: Site, small: Published
) -> None:
    packed = gzip.compress(small.image.read_bytes(), 1)
    host.ddfs("template", "add", "small", publish_packed(fast_site, small, "gz", packed))
    host.ddfs("pool", "define", "--name", "templates")
    template = host.templates / "small.qcow2"
    # Nobody takes the end of an unknown file for the end of the image: there is no file yet.
    assert template.is_symlink()
    with pytest.raises(FileNotFoundError):
        template.read_bytes()
    libvirtd.virsh("pool-refresh", "templates")
    assert "small.qcow2" not in libvirtd.virsh("vol-list", "templates").stdout
    # An overlay that names it can be made all the same, and the gate fetches for it.
    libvirtd.install_hook(host.hook())
    size = host.template("small")["virtual_size"]
    overlay = make_overlay(host.vms / "vm1.qcow2", template, virtual_size=size)
    domain = Domain("vm1", (Disk(overlay),), host.vms / "vm1.serial")
    libvirtd.define(domain, host.vms)
    libvirtd.virsh("start", "vm1")
    wait_until(lambda: small.line in domain.serial_text(), "vm1 prints its line")
    assert template.read_bytes() == small.image.read_bytes()
    assert host.template("small")["size"] == small.size
    assert os.listdir(host.templates) == ["small.qcow2"]
    host.stop()
    host.serve()
    assert host.template("small")["state"] == "downloaded"
    assert host.template("small")["size"] == small.size


def test_an_image_that_is_nearly_all_zeros_is_unpacked_once_its_size_is_said(
    host: Host, fast_site: Site, directory: Path
) -> None:
    image = directory / "zeros.img"
    image.write_bytes(b"boot" + bytes(24 * MIB))
    packed = directory / "zeros.img.bz2"
    packed.write_bytes(bz2.compress(image.read_bytes()))
    host.ddfs("template", "add", "zeros", fast_site.publish_file(packed).source)
    failed = host.ddfs("prefetch", "zeros", check=False)
    assert (failed.returncode, "with --size" in failed.stderr) == (3, True)
    host.ddfs("template", "update", "zeros", "--size", str(image.stat().st_size))
    host.ddfs("prefetch", "zeros")
    assert host.published("zeros").read_bytes() == image.read_bytes()


def test_a_killed_daemon_unpacks_again_what_it_had_fetched(
    directory: Path, fast_site: Site, small: Published
) -> None:
    # Long to unpack: some seconds of zeros behind the image.
    image = small.image.read_bytes()
    packed = gzip.compress(image + bytes(64 << 20), 1) + gzip.compress(bytes(64 << 20), 1) * 20
    source = publish_packed(fast_site, small, "gz", packed)
    with Host(directory / "host") as host:
        host.serve()
        host.ddfs("template", "add", "big", source, "--format", "qcow2")
        sent = sum(mirror.bytes_sent(f"{small.image.name}.gz") for mirror in fast_site.mirrors)
        host.api_json("POST", "/v1/prefetch", {"names": ["big"]})
        partial = host.directory / ".ddfs-images"
        wait_until(lambda: list(partial.glob("*.unpacked.part")), "it is being unpacked")
        host.kill()
        host.serve()
        host.ddfs("prefetch", "big")
        with host.published("big").open("rb") as file:
            assert file.read(len(image)) == image
        assert host.published("big").stat().st_blocks * 512 < 2 * small.size
        assert not [path for path in partial.iterdir() if path.name != "lock"]
        again = sum(mirror.bytes_sent(f"{small.image.name}.gz") for mirror in fast_site.mirrors)
        assert again - sent < len(packed) * 2


def test_a_file_of_this_host_is_a_source(
    host: Host,
    libvirtd: Libvirtd,
    fast_site: Site,
    small: Published,
    make_vm: MakeVm,
    directory: Path,
) -> None:
    image = directory / "my image.qcow2"
    image.write_bytes(small.image.read_bytes())
    host.ddfs("template", "add", "small", image, "--checksum", f"sha256:{small.sha256}")
    domain = make_vm(host, "vm1", host.templates / "small.qcow2")
    libvirtd.virsh("start", "vm1")
    wait_until(lambda: small.line in domain.serial_text(), "vm1 prints its line")
    published = host.published("small")
    assert published.read_bytes() == image.read_bytes()
    assert published.stat().st_ino != image.stat().st_ino
    # Readers of another template in the pool would wait for themselves.
    packed = lzma.compress(small.image.read_bytes(), preset=0)
    host.ddfs("template", "add", "next", publish_packed(fast_site, small, "xz", packed))
    refused = host.ddfs(
        *("template", "add", "loop", host.templates / "next.qcow2"),
        *("--checksum", f"sha256:{small.sha256}"),
        check=False,
    )
    assert refused.returncode != 0
    assert "ddfs's own" in refused.stderr


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_an_nfs_server_is_a_source(
    host: Host, libvirtd: Libvirtd, small: Published, make_vm: MakeVm, directory: Path
) -> None:
    work = directory / "nfs"
    work.mkdir()
    with nfs_server(work) as server:
        (server.export / "small.qcow2.xz").write_bytes(
            lzma.compress(small.image.read_bytes(), preset=0)
        )
        checksum = f"sha256:{sha256_of(server.export / 'small.qcow2.xz')}"
        source = server.url("small.qcow2.xz")
        host.ddfs("template", "add", "small", source, "--checksum", checksum)
        domain = make_vm(host, "vm1", host.templates / "small.qcow2")
        libvirtd.virsh("start", "vm1")
        wait_until(lambda: small.line in domain.serial_text(), "vm1 prints its line")
        assert sha256_of(host.published("small")) == small.sha256
        copy = directory / "copy.xz"
        host.ddfs("fetch", source, "--checksum", checksum, "-o", copy)
        assert f"sha256:{sha256_of(copy)}" == checksum
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        assert not any(line.split(" - ")[1].startswith("nfs") for line in mounts)
