"""kill -9, termination, and what the next daemon finds."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from lab.host import Host
from lab.metalink import sha256_of
from lab.processes import wait_until
from lab.readers import Readers
from lab.site import MIB, Published, Site, site

KILLS: Final = 20

# Kind, length and checksum of a record.
JOURNAL_FRAME: Final = struct.Struct("<BII")


def journaled(host: Host) -> int:
    """What the journal on disk says is here, while no daemon runs; as its module describes it."""
    pieces: set[int] = set()
    header: dict[str, int] = {}
    for path in (host.directory / ".ddfs-images").glob("*.journal"):
        data = path.read_bytes()
        while len(data) >= JOURNAL_FRAME.size:
            kind, length, _ = JOURNAL_FRAME.unpack_from(data)
            payload = data[JOURNAL_FRAME.size : JOURNAL_FRAME.size + length]
            data = data[JOURNAL_FRAME.size + length :]
            if len(payload) < length:
                break
            if kind == ord("H"):
                header = json.loads(payload)
            elif kind == ord("P"):
                pieces.add(int.from_bytes(payload[:8], "little"))
            elif kind == ord("F"):
                pieces.discard(int.from_bytes(payload[:8], "little"))
    ends = (min(header["size"], (piece + 1) * header["piece_length"]) for piece in pieces)
    return sum(
        end - piece * header["piece_length"] for end, piece in zip(ends, pieces, strict=True)
    )


@pytest.fixture
def shop(directory: Path) -> Iterator[Site]:
    with site(directory / "site", [7 * MIB, 5 * MIB, 4 * MIB]) as shop:
        yield shop


@pytest.mark.parametrize("piece_length", [MIB, None], ids=["pieces", "no-pieces"])
def test_killed_twenty_times_over_one_fetch(
    directory: Path, shop: Site, piece_length: int | None
) -> None:
    kills = KILLS if piece_length else 4
    image = shop.publish("image", size=kills * 10 * MIB, piece_length=piece_length)
    moments = random.Random(20)
    with Host(directory / "host") as host:
        host.serve()
        host.ddfs("template", "add", "image", image.source)
        known = 0
        for number in range(kills):
            host.api_json("POST", "/v1/prefetch", {"names": ["image"]})
            time.sleep(moments.uniform(0.0, 0.9))
            host.kill()
            is_complete = any(host.images.glob("image@*"))
            # How soon a verified piece is in there depends on the machine; that it counts, not.
            on_disk = image.size if is_complete else journaled(host)
            assert on_disk >= known, f"kill {number} lost verified pieces"
            host.serve()
            if is_complete:
                break
            template = host.template("image")
            assert template["bytes_here"] >= on_disk, f"the start after kill {number} lost pieces"
            assert template["state"] != "error"
            known = on_disk
        assert known > 0, "no fetch ran between the kills: the test shows nothing"
        host.ddfs("prefetch", "image")
        assert sha256_of(host.published("image")) == image.sha256


def test_a_kill_at_the_end_leaves_the_template_or_its_fetch(
    directory: Path, fast_site: Site
) -> None:
    """Around publishing: rename, row and symlink are put right at the next start."""
    image = fast_site.publish("quick", size=4 * MIB)
    with Host(directory / "host") as host:
        host.serve()
        host.ddfs("template", "add", "quick", image.source)
        for pause in (0.0, 0.01, 0.02, 0.04, 0.08, 0.16):
            host.api_json("POST", "/v1/prefetch", {"names": ["quick"]})
            time.sleep(pause)
            host.kill()
            host.serve()
        host.ddfs("prefetch", "quick")
        assert sha256_of(host.published("quick")) == image.sha256
        names = [path.name for path in host.images.iterdir() if not path.name.startswith(".")]
        assert names == [host.published("quick").name]


def test_a_killed_daemon_leaves_no_mount_that_hangs(host: Host, small: Published) -> None:
    host.ddfs("template", "add", "small", small.source)
    host.ddfs("prefetch", "small")
    host.kill()
    # The published template stays usable under the same path, through the symlink below.
    result = wait_for_bytes(host.templates / "small.qcow2")
    assert result == small.sha256
    host.serve()
    assert host.is_mounted()
    assert Readers(host.templates / "small.qcow2").results()[0].sha256 == small.sha256


def wait_for_bytes(path: Path) -> str:
    """Its SHA-256 as soon as it can be opened: somebody has to see the death and unmount."""
    wait_until(lambda: Readers(path, length=1).results()[0].errno == 0, f"{path} opens")
    return Readers(path).results()[0].sha256


def test_a_stale_mount_is_cleaned_up_at_start(host: Host, small: Published) -> None:
    host.ddfs("template", "add", "small", small.source)
    daemon = host.daemon
    assert daemon is not None
    # Whoever guards the mount dies first, while the daemon can do nothing about it.
    daemon.signal(signal.SIGSTOP)
    for child in children_of(daemon.pid):
        os.kill(child, signal.SIGKILL)
    host.kill()
    assert host.is_mounted(), "nothing was stale: the test shows nothing"
    host.serve()
    assert host.template("small")["state"] == "not-downloaded"
    assert Readers(host.templates / "small.qcow2").results()[0].sha256 == small.sha256


def children_of(pid: int) -> list[int]:
    command = ["ps", "-o", "pid=", "--ppid", str(pid)]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [int(child) for child in listing.split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_a_signal_blocked_readers_get_eio_and_the_mount_goes(
    directory: Path, shop: Site, number: int
) -> None:
    image = shop.publish("image", size=64 * MIB)
    with Host(directory / "host") as host:
        daemon = host.serve()
        host.ddfs("template", "add", "image", image.source)
        host.ddfs("prefetch", "image", "--no-wait")
        wait_until(lambda: host.template("image")["bytes_here"] > 4 * MIB, "the fetch runs")
        for mirror in shop.mirrors:
            mirror.pause()
        here = host.template("image")["bytes_here"]
        # Where nothing is yet, so that nobody is still busy with what is here.
        readers = Readers(host.templates / "image.qcow2", count=50, offset=63 * MIB)
        time.sleep(1.2)
        assert readers.is_waiting(), "nobody is blocked: the test shows nothing"
        daemon.signal(number)
        wait_until(lambda: not host.is_mounted(), "the mount is gone")
        assert {reader.errno for reader in readers.results()} == {errno.EIO}
        assert daemon.wait() == 0
        for mirror in shop.mirrors:
            mirror.resume()
        host.serve()
        assert host.template("image")["bytes_here"] >= here


def test_an_open_file_does_not_keep_the_mount(host: Host, small: Published) -> None:
    host.ddfs("template", "add", "small", small.source)
    fd = os.open(host.templates / "small.qcow2", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert host.daemon is not None
        host.daemon.signal(signal.SIGTERM)
        wait_until(lambda: not host.is_mounted(), "the mount is gone")
        assert host.daemon.wait() == 0
    finally:
        # Its daemon is gone, and close() says so.
        with contextlib.suppress(OSError):
            os.close(fd)
