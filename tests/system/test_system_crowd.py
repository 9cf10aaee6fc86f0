"""Thirty domains at once on five templates that are not here."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import URI, Libvirtd
from lab.site import MIB, site

DOMAINS = 30
TEMPLATES = 5
WAIT_SECONDS = 5.0

# For each connection: no image is here before the window closes.
SLOW = 64 * 1024


def virsh(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["virsh", "-q", "-c", URI, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_one_window_and_one_fetch_for_each_template(directory: Path, libvirtd: Libvirtd) -> None:
    with (
        site(directory / "site", [8 * MIB]) as shop,
        Host(directory / "host", gate_wait=WAIT_SECONDS) as host,
    ):
        host.serve()
        libvirtd.install_hook(host.hook())
        images = [shop.publish(f"t{n}", size=16 * MIB, seed=n) for n in range(TEMPLATES)]
        for number, image in enumerate(images):
            host.ddfs("template", "add", f"t{number}", image.source)
        names = [f"vm{number}" for number in range(DOMAINS)]
        for number, name in enumerate(names):
            template = host.templates / f"t{number % TEMPLATES}.qcow2"
            top = make_overlay(host.vms / f"{name}.qcow2", template, virtual_size=16 * MIB)
            libvirtd.define(Domain(name, (Disk(top),), memory_mib=16), host.vms)
        shop.mirrors[0].change_rate(SLOW)
        needed = {"path": str(host.templates / "t0.qcow2")}
        registered = [image.bytes_sent() for image in images]
        with ThreadPoolExecutor(DOMAINS) as pool:
            began = time.monotonic()
            starts = [pool.submit(virsh, "start", name) for name in names]
            # The first answer comes when the window closes; then it is closed for all: a window
            # of its own would be at least so long.
            question = {"domain": "late", "files": [needed]}
            assert not host.api_json("POST", "/gate", question)["allowed"]
            asked = time.monotonic()
            late = host.api_json("POST", "/gate", question)
            assert time.monotonic() - asked < WAIT_SECONDS
            assert not late["allowed"]
            while not all(start.done() for start in starts):
                assert virsh("list", "--all").returncode == 0
            took = time.monotonic() - began
        refused = [start.result() for start in starts if start.result().returncode != 0]
        assert len(refused) == DOMAINS
        for result in refused:
            assert "% here" in result.stderr
            assert "ddfs start vm" in result.stderr
        # One after the other would be thirty windows.
        assert took < DOMAINS * WAIT_SECONDS / 2
        shop.mirrors[0].change_rate(8 * MIB)
        host.ddfs("prefetch", *(f"t{number}" for number in range(TEMPLATES)))
        for image, before in zip(images, registered, strict=True):
            # One for each domain would be six; segments that end early have sent in vain.
            assert image.bytes_sent() - before < 3 * image.size
        results = Counter(virsh("start", name).returncode for name in names[:TEMPLATES])
        assert results == {0: TEMPLATES}
