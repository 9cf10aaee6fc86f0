"""However many ask, one fetch; and whoever waits holds up nobody else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab.domain import Domain
from lab.host import Host
from lab.libvirtd import URI, Libvirtd
from lab.processes import PATIENCE_SECONDS, wait_until
from lab.readers import Readers
from lab.site import MIB, Published, Site, site

MakeVm = Callable[[Host, str, Path], Domain]

BLOCKED = 200


def test_sixteen_readers_and_eight_starts_share_one_fetch(
    directory: Path, libvirtd: Libvirtd, make_vm: MakeVm
) -> None:
    rates = [12 * MIB, 8 * MIB, 6 * MIB]
    with site(directory, rates) as shop, Host(directory / "host", gate_wait=90) as host:
        image = shop.publish("shared", size=64 * MIB)
        host.serve()
        host.ddfs("template", "add", "shared", image.source)
        template = host.templates / "shared.qcow2"
        names = [f"vm{number}" for number in range(8)]
        domains = [make_vm(host, name, template) for name in names]
        before = image.bytes_sent()
        readers = Readers(template, count=16)
        starts = [
            subprocess.Popen(["virsh", "-q", "-c", URI, "start", name], stderr=subprocess.PIPE)
            for name in names
        ]
        for reader in readers.results():
            assert (reader.errno, reader.sha256) == (0, image.sha256), reader
        for start in starts:
            _, problem = start.communicate(timeout=PATIENCE_SECONDS)
            assert start.returncode == 0, problem
        for domain in domains:
            wait_until(lambda d=domain: image.line in d.serial_text(), f"{domain.name} boots")
        # Two fetches would be twice its size; slow segments are asked for again.
        assert image.bytes_sent() - before < 2 * image.size


def test_blocked_readers_hold_up_neither_other_readers_nor_a_refresh(
    directory: Path, host: Host, libvirtd: Libvirtd, fast_site: Site, small: Published
) -> None:
    other = fast_site.publish("other", size=16 * MIB, seed=1)
    with site(directory, [None]) as shop:
        stuck = shop.publish("stuck", size=16 * MIB)
        for image in (stuck, other):
            host.ddfs("template", "add", image.image.stem, image.source)
        host.ddfs("pool", "define", "--name", "templates")
        libvirtd.virsh("pool-refresh", "templates")
        shop.mirrors[0].pause()
        blocked = Readers(host.templates / "stuck.qcow2", count=BLOCKED, offset=8 * MIB, length=1)
        time.sleep(1)
        result = Readers(host.templates / "other.qcow2").results()[0]
        assert (result.errno, result.sha256) == (0, other.sha256)
        libvirtd.virsh("pool-refresh", "templates")
        # Whoever is behind them in a queue waits for their mirror; what it costs to have them
        # there is for contrib/bench to say.
        assert host.template("stuck")["state"] == "downloading"
        assert blocked.is_waiting(), "nobody was blocked: the test shows nothing"
        shop.mirrors[0].resume()
        assert {reader.errno for reader in blocked.results()} == {0}


def test_a_killed_reader_does_no_harm(host: Host, directory: Path, small: Published) -> None:
    with site(directory, [None]) as shop:
        stuck = shop.publish("stuck", size=4 * MIB)
        host.ddfs("template", "add", "stuck", stuck.source)
        host.ddfs("template", "add", "small", small.source)
        shop.mirrors[0].pause()
        killed = [
            Readers(host.templates / "stuck.qcow2", count=4, offset=2 * MIB, length=1)
            for _ in range(5)
        ]
        time.sleep(0.2)
        for reader in killed:
            reader.process.kill()
        assert Readers(host.templates / "small.qcow2").results()[0].sha256 == small.sha256
        shop.mirrors[0].resume()
        assert Readers(host.templates / "stuck.qcow2").results()[0].sha256 == stuck.sha256
        for reader in killed:
            reader.kill()


def test_a_probe_starts_no_fetch_and_a_reader_does(host: Host, small: Published) -> None:
    host.ddfs("template", "add", "small", small.source)
    before = small.requests()
    template = host.templates / "small.qcow2"
    program = (
        "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK);"
        "print(len(os.pread(fd, 33280, 0)))"
    )
    probe = subprocess.run(
        [sys.executable, "-c", program, template], capture_output=True, text=True, check=True
    )
    assert probe.stdout == "33280\n"
    assert template.stat().st_blocks >= 8
    assert small.requests() == before
    assert host.template("small")["state"] == "not-downloaded"
    assert Readers(template).results()[0].sha256 == small.sha256
    host.wait_for_state("small", "downloaded")
