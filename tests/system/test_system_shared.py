"""Two hosts, each with a libvirtd and a daemon of its own, on one directory."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.processes import wait_until
from lab.region import Node, region
from lab.site import MIB, Published, Site

# In which the other host has to answer.
WAIT_SECONDS = 60
SHORT_SECONDS = 1


@pytest.fixture(scope="module")
def nodes(lab_directory: Path) -> Iterator[list[Node]]:
    settings = {
        "images": lab_directory / "shared-images",
        "primary": "shared = true\n",
        "more": f"[gc]\ngrace = 0\nwait = {WAIT_SECONDS}\n",
    }
    with region(lab_directory / "s", ("east", "west"), **settings) as nodes:
        yield nodes


@pytest.fixture
def image(nodes: list[Node], fast_site: Site, request: pytest.FixtureRequest) -> Published:
    """A template that both hosts know and have."""
    image = fast_site.publish(f"shared{abs(hash(request.node.name)) % 10**9}", size=2 * MIB)
    for node in nodes:
        node.clear()
        node.ddfs.ddfs("template", "add", image.image.stem, image.source)
        node.ddfs.ddfs("prefetch", image.image.stem)
    return image


def collect(host: Host) -> dict[str, str]:
    """What is kept, and why; by name."""
    answer: dict[str, Any] = host.api_json("POST", "/v1/gc", {"unused_for": 0})
    return {stored["names"][0]: stored["kept_because"] for stored in answer["kept"]}


def machine(node: Node, name: str, template: str) -> None:
    """A domain on *node* with a disk of its own there."""
    host = node.ddfs
    size = host.template(template)["virtual_size"]
    backing = host.templates / f"{template}.qcow2"
    overlay = make_overlay(host.vms / f"{name}.qcow2", backing, virtual_size=size)
    document = host.vms / f"{name}.xml"
    document.write_text(Domain(name, (Disk(overlay),)).xml)
    node.virsh("define", document)


def remove(node: Node, name: str) -> None:
    node.virsh("destroy", name, check=False)
    node.virsh("undefine", name)
    (node.ddfs.vms / f"{name}.qcow2").unlink()


def test_what_another_host_needs_stays_and_goes_with_its_last_use(
    nodes: list[Node], image: Published
) -> None:
    east, west = nodes
    name = image.image.stem
    path = east.ddfs.published(name)
    machine(west, "vm", name)
    reason = collect(east.ddfs)[name]
    assert reason.startswith("on host ")
    assert "used by domain vm" in reason
    refused = east.ddfs.ddfs("template", "remove", name, "--purge", check=False)
    assert refused.returncode == 2
    assert "domain vm" in refused.stderr
    assert refused.stderr.count("\n") == 1
    # From now on also without being asked.
    shown = json.loads(east.ddfs.ddfs("gc", "--dry-run", "--json").stdout)
    assert "domain vm on host" in shown["kept"][0]["kept_because"]
    remove(west, "vm")
    assert name not in collect(east.ddfs)
    assert not path.exists()
    wait_until(lambda: west.ddfs.template(name)["state"] == "not-downloaded", "west knows")
    assert not (west.ddfs.templates / f"{name}.qcow2").is_symlink()
    # It comes back when it is wanted, for both.
    machine(west, "again", name)
    west.ddfs.ddfs("start", "again")
    assert path.exists()
    east.ddfs.ddfs("prefetch", name)
    assert east.ddfs.published(name) == path


def test_a_host_that_does_not_answer_keeps_everything(nodes: list[Node], image: Published) -> None:
    east, west = nodes
    name = image.image.stem
    assert west.ddfs.daemon is not None
    wait_for(east, SHORT_SECONDS)
    # Asleep: it wakes up in the middle, and must not find gone what it uses then.
    west.ddfs.daemon.signal(signal.SIGSTOP)
    try:
        reason = collect(east.ddfs)[name]
    finally:
        west.ddfs.daemon.signal(signal.SIGCONT)
    assert reason.startswith("perhaps used on host ")
    assert "start ddfs there, or if it is gone for good: ddfs forget " in reason
    host_id = reason.rpartition(" ")[2]
    assert host_id == (west.ddfs.state / "host-id").read_text().strip()
    alive = east.ddfs.ddfs("forget", host_id, check=False)
    assert alive.returncode == 2
    assert "may live" in alive.stderr
    west.ddfs.kill()
    refused = east.ddfs.ddfs("template", "remove", name, "--purge", check=False)
    assert refused.returncode == 2
    assert "perhaps used on host " in refused.stderr
    assert east.ddfs.published(name).exists()
    west.ddfs.serve()
    wait_for(east, WAIT_SECONDS)
    assert name not in collect(east.ddfs)
    assert not uses_of(east.ddfs, ".intent", ".committed")


def wait_for(node: Node, seconds: int) -> None:
    """Let *node* wait so long for the other host's answers."""
    host = node.ddfs
    lines = host.settings.read_text().splitlines()
    lines[lines.index("[gc]") + 2] = f"wait = {seconds}"
    host.settings.write_text("\n".join(lines) + "\n")
    host.stop()
    host.serve()


def uses_of(host: Host, *suffixes: str) -> list[Path]:
    directory = host.images.with_name(f".ddfs-{host.images.name}") / "uses"
    return [path for path in directory.iterdir() if path.name.endswith(suffixes)]


def test_machines_that_come_while_another_host_collects_find_their_template(
    nodes: list[Node], image: Published
) -> None:
    """East deletes as fast as it can what west makes machines of."""
    east, west = nodes
    name = image.image.stem
    is_over = threading.Event()
    rounds: list[dict[str, str]] = []

    def collect_again_and_again() -> None:
        while not is_over.is_set():
            rounds.append(collect(east.ddfs))

    collecting = threading.Thread(target=collect_again_and_again)
    collecting.start()
    try:
        for number in range(3):
            west.ddfs.ddfs("prefetch", name)
            machine(west, f"vm{number}", name)
            west.ddfs.ddfs("start", f"vm{number}")
            assert west.virsh("domstate", f"vm{number}").stdout.strip() == "running"
            assert west.ddfs.published(name).exists()
            remove(west, f"vm{number}")
    finally:
        is_over.set()
        collecting.join()
    assert rounds
    assert not uses_of(east.ddfs, ".intent", ".committed")
