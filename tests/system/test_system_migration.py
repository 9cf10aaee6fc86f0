"""A domain comes from another host: the gate answers in the destination's ``prepare``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.mirrors import free_port
from lab.processes import wait_until
from lab.second import SecondLibvirtd
from lab.site import MIB, Site, site


@pytest.mark.parametrize("is_silent", [False, True], ids=["fetched", "refused"])
def test_an_incoming_migration_waits_for_the_template_or_is_refused(
    directory: Path, libvirtd: Libvirtd, is_silent: bool
) -> None:
    with (
        site(directory / "site", [None]) as shop,
        Host(directory / "host", gate_wait=2.0 if is_silent else 60.0) as host,
    ):
        host.serve()
        domain, line = _running(host, libvirtd, shop)
        # The source has the file open; the destination does not have it.
        published = host.published("moving")
        subprocess.run(["chattr", "-i", published], check=False, capture_output=True)
        published.unlink()
        if is_silent:
            shop.mirrors[0].pause()
        with SecondLibvirtd(directory / "second", host.hook()) as second:
            port = free_port("127.0.0.1")
            words = ["migrate", "vm1", second.uri, "--live", "--unsafe"]
            address = ["--migrateuri", f"tcp://127.0.0.1:{port}", "--listen-address", "127.0.0.1"]
            moved = libvirtd.virsh(*words, *address, check=False)
            if is_silent:
                assert moved.returncode != 0
                assert "moving.qcow2 is 0 % here" in moved.stderr
                assert libvirtd.virsh("domstate", "vm1").stdout.strip() == "running"
                return
            assert moved.returncode == 0, moved.stderr
            assert host.template("moving")["state"] == "downloaded"
            assert second.virsh("domstate", "vm1").stdout.strip() == "running"
            booted = domain.serial_text().count(line)
            second.virsh("reset", "vm1")
            wait_until(lambda: domain.serial_text().count(line) > booted, "it boots there")


def _running(host: Host, libvirtd: Libvirtd, shop: Site) -> tuple[Domain, str]:
    libvirtd.install_hook(host.hook())
    image = shop.publish("moving", size=4 * MIB)
    host.ddfs("template", "add", "moving", image.source)
    template = host.templates / "moving.qcow2"
    top = make_overlay(host.vms / "vm1.qcow2", template, virtual_size=4 * MIB)
    domain = Domain("vm1", (Disk(top),), host.vms / "vm1.serial")
    libvirtd.define(domain, host.vms)
    libvirtd.virsh("start", "vm1")
    wait_until(lambda: image.line in domain.serial_text(), "it boots")
    return domain, image.line
