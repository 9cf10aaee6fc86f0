"""Mirrors that lie or do not answer."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from lab.domain import Domain
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.metalink import sha256_of
from lab.mirrors import Mirror
from lab.processes import wait_until
from lab.readers import Readers
from lab.site import MIB, Site, site

MakeVm = Callable[[Host, str, Path], Domain]


@pytest.fixture
def shop(directory: Path) -> Iterator[Site]:
    with site(directory / "site", [8 * MIB, 8 * MIB, 8 * MIB]) as shop:
        yield shop


def where(mirror: Mirror) -> str:
    return f"{mirror.address}:{mirror.port}"


@pytest.mark.parametrize("piece_length", [MIB, None], ids=["pieces", "no-pieces"])
def test_a_mirror_with_wrong_bytes_is_named_and_nobody_sees_its_bytes(
    host: Host, shop: Site, piece_length: int | None
) -> None:
    liar = shop.mirrors[1]
    image = shop.publish("image", size=32 * MIB, piece_length=piece_length, liars=[liar])
    host.ddfs("template", "add", "image", image.source)
    template = host.templates / "image.qcow2"
    reader = Readers(template).results()[0]
    assert (reader.errno, reader.sha256) == (0, image.sha256)
    host.wait_for_state("image", "downloaded")
    assert sha256_of(host.published("image")) == image.sha256
    assert liar.bytes_sent(image.image.name) > 0, "it was never asked: the test shows nothing"
    mirrors = {urlsplit(m["url"]).netloc: m for m in host.template("image")["mirrors"]}
    blamed = mirrors.pop(where(liar))
    assert blamed["last_error"]
    assert (blamed["rejected_pieces"] > 0) == (piece_length is not None)
    for mirror in mirrors.values():
        assert (mirror["rejected_pieces"], mirror["last_error"]) == (0, None)
    warnings = [line for line in host.tail(1000).splitlines() if line.startswith("WARNING")]
    assert any(where(liar) in line for line in warnings), host.tail()
    assert where(liar) in host.ddfs("status", "image", "--json").stdout


@pytest.mark.parametrize("fault", ["wrong bytes", "no answer"])
def test_when_no_mirror_helps_reads_fail_starts_are_refused_and_the_fetch_rests(
    host: Host, shop: Site, libvirtd: Libvirtd, make_vm: MakeVm, fault: str
) -> None:
    liars = shop.mirrors if fault == "wrong bytes" else ()
    image = shop.publish("image", size=8 * MIB, liars=liars)
    host.ddfs("template", "add", "image", image.source)
    template = host.templates / "image.qcow2"
    make_vm(host, "vm1", template)
    if fault == "no answer":
        for mirror in shop.mirrors:
            mirror.stop()
    reader = Readers(template, offset=4 * MIB).results()[0]
    assert (reader.errno, reader.size) == (errno.EIO, 0)
    host.wait_for_state("image", "error")
    refused = libvirtd.virsh("start", "vm1", check=False)
    assert refused.returncode != 0
    assert "image.qcow2 cannot be fetched" in refused.stderr
    assert any(where(mirror) in refused.stderr for mirror in shop.mirrors)
    reason = host.template("image")["last_error"]
    assert reason in refused.stderr
    assert reason in host.ddfs("status", "image", "--json").stdout

    # It rests: reads fail at once, and ask no mirror. After the second failure for half a minute.
    assert host.ddfs("prefetch", "image", check=False).returncode != 0
    asked = image.requests()
    readers = Readers(template, count=5, offset=4 * MIB).results()
    assert {reader.errno for reader in readers} == {errno.EIO}
    assert host.template("image")["state"] == "error"
    assert image.requests() == asked

    # Asked by hand, it is tried at once.
    for mirror in shop.mirrors:
        (mirror.root / image.image.name).unlink()
        (mirror.root / image.image.name).hardlink_to(image.image)
        mirror.stop()
        mirror.start()
    host.ddfs("prefetch", "image")
    assert sha256_of(host.published("image")) == image.sha256
    libvirtd.virsh("start", "vm1")


def test_a_mirror_that_falls_silent_is_left_for_the_others(host: Host, shop: Site) -> None:
    image = shop.publish("image", size=64 * MIB)
    host.ddfs("template", "add", "image", image.source)
    reader = Readers(host.templates / "image.qcow2")
    wait_until(lambda: host.template("image")["bytes_here"] > 4 * MIB, "the fetch runs")
    shop.mirrors[0].pause()
    result = reader.results()[0]
    assert (result.errno, result.sha256) == (0, image.sha256)


def test_a_fetch_survives_a_restart_of_its_mirrors(host: Host, shop: Site) -> None:
    image = shop.publish("image", size=64 * MIB)
    host.ddfs("template", "add", "image", image.source)
    host.ddfs("prefetch", "image", "--no-wait")
    wait_until(lambda: host.template("image")["bytes_here"] > 4 * MIB, "the fetch runs")
    for mirror in shop.mirrors[1:]:
        mirror.stop()
    time.sleep(1)
    for mirror in shop.mirrors[1:]:
        mirror.start()
    host.wait_for_state("image", "downloaded")
    assert sha256_of(host.published("image")) == image.sha256


def test_cancel_ends_a_fetch_and_a_later_one_goes_on_from_there(host: Host, shop: Site) -> None:
    image = shop.publish("image", size=96 * MIB)
    host.ddfs("template", "add", "image", image.source)
    host.ddfs("prefetch", "image", "--no-wait")
    reader = Readers(host.templates / "image.qcow2", offset=90 * MIB)
    wait_until(lambda: host.template("image")["bytes_here"] > 32 * MIB, "the fetch runs")
    host.ddfs("cancel", "image")
    assert reader.results()[0].errno in (0, errno.EIO)
    wait_until(lambda: host.template("image")["state"] != "downloading", "it has ended")
    kept = host.template("image")["bytes_here"]
    assert kept > 24 * MIB
    before = image.bytes_sent()
    host.ddfs("prefetch", "image")
    # Some pieces are asked for twice in any fetch; what was kept is much more.
    assert image.bytes_sent() - before <= image.size - kept / 2
    assert sha256_of(host.published("image")) == image.sha256
