"""Limits and seeds in a running daemon, through its commands and its sockets alone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from lab.bootimage import MIB
from lab.host import Host
from lab.processes import wait_until
from lab.site import Site

pytestmark = pytest.mark.system


def test_limits_hold_and_change_for_what_runs(host: Host, fast_site: Site) -> None:
    images = [fast_site.publish(f"limited{n}", size=32 * MIB, seed=n) for n in range(2)]
    for image in images:
        host.ddfs("template", "add", image.image.stem, image.source)
    limits = host.api_json("GET", "/v1/limits")
    assert (limits["bandwidth"], limits["fetches_at_once"]) == (0, 16)
    host.ddfs("limits", "--bandwidth", "2MiB", "--fetches-at-once", "1")
    names = [image.image.stem for image in images]
    began = time.monotonic()
    host.ddfs("prefetch", "--no-wait", *names)
    wait_until(lambda: host.template(names[0])["bytes_here"] >= 4 * MIB, "the first one runs")
    first, second = (host.template(name) for name in names)
    assert first["state"] == second["state"] == "downloading"
    # The other one waits its turn.
    assert (second["bytes_here"], second["bytes_per_second"]) == (0, 0.0)
    took = time.monotonic() - began
    assert first["bytes_here"] <= 2 * MIB * (1.25 * took + 1)
    host.ddfs("limits", "--bandwidth", "0")
    began = time.monotonic()
    host.ddfs("prefetch", *names)
    # At 2 MiB/s it would have been thirty seconds less the ones before.
    assert time.monotonic() - began < 25
    status, answer = host.api("PUT", "/v1/limits", {"bandwidth": 3})
    assert (status, b"no bandwidth to keep to" in answer) == (400, True)


def test_a_seed_saves_the_mirrors(host: Host, fast_site: Site, directory: Path) -> None:
    image = fast_site.publish("seeded", size=16 * MIB, seed=5)
    host.ddfs("template", "add", "seeded", image.source)
    before = image.bytes_sent()
    in_mount = host.ddfs(
        "prefetch", "seeded", "--seed", host.templates / "seeded.qcow2", check=False
    )
    assert (in_mount.returncode, "lies in the template pool" in in_mount.stderr) == (2, True)
    seed = directory / "old.qcow2"
    shutil.copy(image.image, seed)
    host.ddfs("prefetch", "seeded", "--seed", seed)
    host.wait_for_state("seeded", "downloaded")
    assert image.bytes_sent() == before
