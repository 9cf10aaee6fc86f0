"""libvirt beside ddfs: its pool, its absence, and what is in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lab.domain import Domain
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.processes import wait_until
from lab.site import Published, Site

MakeVm = Callable[[Host, str, Path], Domain]


def pool_state(libvirtd: Libvirtd, name: str) -> str:
    for line in libvirtd.virsh("pool-info", name).stdout.splitlines():
        if line.startswith("State:"):
            return line.split()[1]
    return "unknown"


def volumes(libvirtd: Libvirtd, pool: str) -> list[str]:
    lines = libvirtd.virsh("vol-list", pool).stdout.splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def test_templates_come_and_go_in_the_pool_by_themselves(
    host: Host, libvirtd: Libvirtd, fast_site: Site, small: Published
) -> None:
    host.ddfs("pool", "define", "--name", "templates")
    assert volumes(libvirtd, "templates") == []
    host.ddfs("template", "add", "small", small.source)
    wait_until(lambda: volumes(libvirtd, "templates") == ["small.qcow2"], "it is listed")
    host.ddfs("template", "remove", "small")
    wait_until(lambda: volumes(libvirtd, "templates") == [], "it is gone")
    host.ddfs("pool", "undefine")
    assert libvirtd.virsh("pool-info", "templates", check=False).returncode != 0


def test_a_pool_that_somebody_made_is_adopted(host: Host, libvirtd: Libvirtd) -> None:
    libvirtd.virsh("pool-define-as", "mine", "dir", "--target", f"{host.templates}/")
    host.ddfs("pool", "define")
    assert libvirtd.virsh("pool-list", "--all", "--name").stdout.split() == ["mine"]
    assert pool_state(libvirtd, "mine") == "running"


def test_the_daemon_works_without_libvirtd_and_starts_the_pool_when_it_is_back(
    directory: Path, libvirtd: Libvirtd, small: Published
) -> None:
    with Host(directory / "host") as host:
        host.serve()
        host.ddfs("pool", "define", "--name", "templates")
        libvirtd.virsh("pool-autostart", "templates", "--disable")
        host.stop()
        libvirtd.stop()
        try:
            host.serve()
            host.ddfs("template", "add", "small", small.source)
            host.ddfs("prefetch", "small")
            failed = host.ddfs("pool", "refresh", check=False)
            assert failed.returncode == 4
            assert failed.stderr.startswith("ddfs: ")
            assert len(failed.stderr.splitlines()) == 1
        finally:
            libvirtd.start()
        wait_until(lambda: pool_state(libvirtd, "templates") == "running", "it is started")
        wait_until(lambda: volumes(libvirtd, "templates") == ["small.qcow2"], "it is refreshed")


def test_what_is_in_use_is_not_removed(
    host: Host, libvirtd: Libvirtd, small: Published, make_vm: MakeVm
) -> None:
    host.ddfs("template", "add", "small", small.source)
    make_vm(host, "vm1", host.templates / "small.qcow2")
    libvirtd.virsh("start", "vm1")
    for words in (["remove", "small"], ["remove", "small", "--purge"]):
        refused = host.ddfs("template", *words, check=False)
        assert refused.returncode == 2
        assert "use" in refused.stderr
    published = host.published("small")
    libvirtd.virsh("destroy", "vm1")
    libvirtd.virsh("undefine", "vm1")
    (host.vms / "vm1.qcow2").unlink()
    host.ddfs("template", "remove", "small")
    assert published.exists(), "only --purge deletes it"


def test_purge_deletes_the_published_file(host: Host, small: Published) -> None:
    host.ddfs("template", "add", "small", small.source)
    host.ddfs("prefetch", "small")
    published = host.published("small")
    host.ddfs("template", "remove", "small", "--purge")
    assert not published.exists()
    assert list(host.templates.iterdir()) == []


def test_a_volume_disk_is_gated_as_a_file_is(
    host: Host, libvirtd: Libvirtd, small: Published
) -> None:
    libvirtd.install_hook(host.hook())
    host.ddfs("template", "add", "small", small.source)
    host.ddfs("pool", "define", "--name", "templates")
    libvirtd.virsh("pool-refresh", "templates")
    serial = host.vms / "vm1.serial"
    xml = Domain("vm1", (), serial).xml.replace(
        "<devices>",
        "<devices><disk type='volume' device='disk'><driver name='qemu' type='qcow2'/>"
        "<source pool='templates' volume='small.qcow2'/><target dev='vda' bus='virtio'/>"
        "<readonly/></disk>",
    )
    path = host.vms / "vm1.xml"
    path.write_text(xml)
    libvirtd.virsh("define", path)
    libvirtd.virsh("start", "vm1")
    assert host.template("small")["state"] == "downloaded"
    wait_until(lambda: small.line in serial.read_text(), "it boots")
