"""`ddfs limits`, and the limit of `ddfs fetch`."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest

from ddfs import config, errors
from ddfs.cli import fetch
from tests.cli.conftest import Ddfs
from tests.cli.test_cli_fetch import serving
from tests.control.fake import FakeService, RunningDaemon


def test_limits_are_shown_and_changed(
    ddfs: Ddfs, daemon: RunningDaemon, service: FakeService
) -> None:
    shown = ddfs("limits")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines() == [
        "bandwidth             no limit",
        "bandwidth per fetch   no limit",
        "connections per host  16",
        "fetches at once       4",
    ]
    done = ddfs("limits", "--bandwidth", "50MiB", "--fetches-at-once", "2", "--json")
    assert json.loads(done.out)["bandwidth"] == 50 * 1024**2
    assert service.limits_now.fetches_at_once == 2
    assert "bandwidth             50.0 MiB/s\n" in ddfs("limits").out
    assert ddfs("limits", "--bandwidth=0").code == 0
    assert service.limits_now.bandwidth == 0


def test_a_mistake_is_one_line_and_changes_nothing(
    ddfs: Ddfs, daemon: RunningDaemon, service: FakeService
) -> None:
    before = service.limits_now
    done = ddfs("limits", "--fetches-at-once", "2", "--bandwidth", "fast")
    assert (done.code, done.out) == (errors.EXIT_REQUEST, "")
    assert done.err.startswith("ddfs: 'fast' is no bandwidth: write bytes per second")
    assert ddfs("limits", "--bandwidth", "10").code == errors.EXIT_REQUEST
    assert service.limits_now == before


def test_without_a_daemon(ddfs: Ddfs) -> None:
    assert ddfs("limits").code == errors.EXIT_HOST


@pytest.mark.parametrize("by_option", [True, False])
def test_a_fetch_keeps_to_its_limit(
    ddfs: Ddfs, tmp_path: Path, settings_file: Path, by_option: bool
) -> None:
    content = bytes(range(256)) * 8192
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    options = ["--limit-rate", "1MiB"]
    if not by_option:
        settings_file.write_text(
            settings_file.read_text() + '[network]\nbandwidth_per_fetch = "1MiB"\n'
        )
        options = []
    with serving({"/x.img": content}) as site:
        begun = time.monotonic()
        done = ddfs("fetch", f"{site}/x.img", "--checksum", digest, "-o", str(tmp_path), *options)
        took = time.monotonic() - begun
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "x.img").read_bytes() == content
    assert took >= 1.5


def test_what_is_no_rate_is_refused_before_any_request(ddfs: Ddfs, tmp_path: Path) -> None:
    # Port 9 answers nobody: a request would fail in another way.
    target = str(tmp_path / "x")
    done = ddfs("fetch", "http://127.0.0.1:9/x.meta4", "-o", target, "--limit-rate", "quick")
    assert (done.code, done.err.startswith("ddfs: 'quick' is no bandwidth")) == (2, True)


def test_the_limit_of_a_fetch_is_the_option_or_the_lower_setting() -> None:
    both = config.NetworkSettings(bandwidth=500_000, bandwidth_per_fetch=100_000)
    assert fetch._limit(None, config.NetworkSettings()) == 0
    assert fetch._limit(None, both) == 100_000
    assert fetch._limit("0", both) == 0
    assert fetch._limit("1MiB", both) == 1024**2
