"""Room in primary storage: what goes when it is short, and what never does."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.processes import wait_until
from lab.site import MIB, Published, Site

MakeVm = Callable[[Host, str, Path], Domain]

SEQUENCES = 20
STEPS = 4


def with_limits(host: Host, limits: str) -> None:
    """Another line for the primary storage; before the daemon starts."""
    text = host.settings.read_text()
    line = f'path = "{host.images}"\n'
    assert line in text
    host.settings.write_text(text.replace(line, f"{line}{limits}\n"))


def add(host: Host, image: Published) -> str:
    host.ddfs("template", "add", image.image.stem, image.source)
    return image.image.stem


def collect(host: Host, *options: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(host.ddfs("gc", "--json", *options).stdout)
    return answer


def reasons(answer: dict[str, Any]) -> dict[str, str]:
    return {stored["names"][0]: stored["kept_because"] for stored in answer["kept"]}


def age(host: Host) -> None:
    """Let everything be unused for a day; the daemon does not run."""
    with closing(sqlite3.connect(host.state / "catalogue.db")) as database, database:
        database.execute("UPDATE last_use SET used_at = used_at - 86400")


def images_of(site: Site, stem: str, count: int, size: int = 2 * MIB) -> list[Published]:
    return [site.publish(f"{stem}{n}", size=size, seed=n + 10) for n in range(count)]


def test_gc_keeps_what_anybody_uses_and_says_who(
    host: Host, fast_site: Site, libvirtd: Libvirtd, make_vm: MakeVm
) -> None:
    names = [add(host, image) for image in images_of(fast_site, "gc", 5)]
    host.ddfs("prefetch", *names)
    plain, overlaid, snapshot, pinned, loose = names
    make_vm(host, "stopped", host.templates / f"{overlaid}.qcow2")
    # A snapshot remembers a disk that the domain does not have any more.
    (host.directory / "elsewhere").mkdir()
    path = host.directory / "elsewhere" / "past.qcow2"
    make_overlay(path, host.published(snapshot))
    past = Domain("past", (Disk(path),))
    libvirtd.define(past, host.vms)
    libvirtd.virsh("snapshot-create-as", "past", "s1")
    libvirtd.virsh("detach-disk", "past", "vda", "--config")
    host.ddfs("pin", pinned)
    make_overlay(host.vms / "loose.qcow2", host.published(loose))

    assert all("ago" in reason for name, reason in reasons(collect(host)).items() if name == plain)
    shown = collect(host, "--dry-run", "--unused-for", "0s")
    assert [stored["names"] for stored in shown["removed"]] == [[plain]]
    assert host.published(plain).exists()
    kept = reasons(shown)
    assert kept[overlaid].startswith("used by domain stopped, ")
    assert kept[snapshot].startswith("used by snapshot s1 of domain past")
    assert kept[pinned] == "pinned"
    assert kept[loose] == f"used by {host.vms}/loose.qcow2"
    assert "pinned" in host.ddfs("template", "list").stdout

    gone = collect(host, "--unused-for", "0s")
    assert [stored["names"] for stored in gone["removed"]] == [[plain]]
    assert gone["freed"] == host.template(plain)["size"]
    assert host.template(plain)["state"] == "not-downloaded"
    assert not (host.templates / f"{plain}.qcow2").is_symlink()
    assert (host.templates / f"{overlaid}.qcow2").is_symlink()
    libvirtd.virsh("start", "stopped")
    # It comes back when it is wanted.
    host.ddfs("prefetch", plain)
    libvirtd.virsh("snapshot-delete", "past", "s1", "--metadata")


def test_gc_deletes_nothing_when_something_cannot_be_looked_at(
    host: Host, fast_site: Site, libvirtd: Libvirtd
) -> None:
    name = add(host, images_of(fast_site, "blind", 1)[0])
    host.ddfs("prefetch", name)
    (host.directory / "old").mkdir()
    libvirtd.virsh("pool-define-as", "old", "dir", "--target", host.directory / "old")
    kept = reasons(collect(host, "--unused-for", "0s"))
    assert kept[name] == "perhaps used: pool old is not active; start it, or undefine it"
    libvirtd.virsh("pool-undefine", "old")
    libvirtd.stop()
    try:
        kept = reasons(collect(host, "--unused-for", "0s"))
    finally:
        libvirtd.start()
    assert kept[name].startswith("perhaps used: libvirtd does not answer")
    assert host.published(name).exists()
    assert collect(host, "--unused-for", "0s")["freed"] > 0


def test_a_fetch_makes_room_within_the_quota_or_is_refused(
    directory: Path, fast_site: Site, libvirtd: Libvirtd, make_vm: MakeVm
) -> None:
    with Host(directory / "host") as host:
        with_limits(host, 'quota = "9MiB"')
        host.serve()
        first, second, third = (
            add(host, image) for image in images_of(fast_site, "short", 3, 4 * MIB)
        )
        host.ddfs("prefetch", first, second)
        refused = host.ddfs("prefetch", third, check=False)
        assert refused.returncode == 4
        assert "over the quota of 9 MiB" in refused.stderr
        assert refused.stderr.count("\n") == 1
        make_vm(host, "vm", host.templates / f"{first}.qcow2")
        host.stop()
        age(host)
        host.serve()
        host.ddfs("prefetch", third)
        assert host.template(second)["state"] == "not-downloaded"
        assert host.template(first)["state"] == "downloaded"
        assert used_bytes(host) <= 9 * MIB


def used_bytes(host: Host) -> int:
    """What ddfs takes in primary storage, partial data included."""
    places = (host.images, host.images.with_name(f".ddfs-{host.images.name}"))
    files = [file for place in places for file in place.iterdir() if file.suffix != ".journal"]
    return sum(file.stat().st_blocks * 512 for file in files if file.is_file())


def test_no_random_life_loses_what_is_needed_or_breaks_the_quota(
    directory: Path, fast_site: Site, libvirtd: Libvirtd
) -> None:
    quota = 7 * MIB
    with Host(directory / "host") as host:
        with_limits(host, f"quota = {quota}")
        host.serve()
        names = [add(host, image) for image in images_of(fast_site, "life", 5)]
        life = _Life(host, libvirtd, names)
        for seed in range(SEQUENCES):
            chance = random.Random(seed)
            for _ in range(STEPS):
                done = life.step(chance)
                life.check(f"sequence {seed}: {done}", quota)
            life.end()


class _Life:
    """Virtual machines that come and go on one host."""

    def __init__(self, host: Host, libvirtd: Libvirtd, names: list[str]) -> None:
        self.host = host
        self.libvirtd = libvirtd
        self.names = names
        self.machines: dict[str, str] = {}
        self.number = 0

    def step(self, chance: random.Random) -> str:
        what = chance.choice(["deploy"] * 5 + ["delete"] * 3 + ["gc"] * 3 + ["kill"])
        name = chance.choice(self.names)
        if what == "deploy":
            self.deploy(name)
        elif what == "delete" and self.machines:
            self.delete(chance.choice(list(self.machines)))
        elif what == "gc":
            self.host.api_json("POST", "/v1/gc", {"unused_for": 0})
        elif what == "kill":
            self.host.api_json("POST", "/v1/prefetch", {"names": [name]})
            self.host.kill()
            self.host.serve()
        return f"{what} {name}"

    def deploy(self, name: str) -> None:
        """A machine on an overlay; with no room for its template there is none."""
        self.host.api_json("POST", "/v1/prefetch", {"names": [name]})
        wait_until(lambda: self.state(name) != "downloading", f"{name} has ended")
        if self.state(name) != "downloaded":
            return
        self.number += 1
        machine = f"life{self.number}"
        size = self.host.template(name)["virtual_size"]
        template = self.host.templates / f"{name}.qcow2"
        overlay = self.host.vms / f"{machine}.qcow2"
        make_overlay(overlay, template, virtual_size=size)
        self.libvirtd.define(Domain(machine, (Disk(overlay),)), self.host.vms)
        self.machines[machine] = name

    def state(self, name: str) -> str:
        return str(self.host.template(name)["state"])

    def delete(self, machine: str) -> None:
        self.libvirtd.virsh("undefine", machine)
        (self.host.vms / f"{machine}.qcow2").unlink()
        del self.machines[machine]

    def check(self, when: str, quota: int) -> None:
        for name in set(self.machines.values()):
            assert self.host.published(name).exists(), f"{when}: {name} is needed and gone"
        assert used_bytes(self.host) <= quota, f"{when}: over quota"

    def end(self) -> None:
        for machine in list(self.machines):
            self.delete(machine)


def test_two_primary_storages_cost_one_fetch(
    directory: Path, fast_site: Site, libvirtd: Libvirtd
) -> None:
    with Host(directory / "host") as host:
        fast = host.directory / "fast"
        fast.mkdir()
        host.settings.write_text(f'{host.settings.read_text()}[primary.fast]\npath = "{fast}"\n')
        host.serve()
        first, second = images_of(fast_site, "two", 2)
        host.ddfs("template", "add", "first", first.source, "--primary", "fast")
        before = first.bytes_sent()
        host.ddfs("prefetch", "first")
        assert host.published("first").parent == fast
        sent = first.bytes_sent() - before
        host.ddfs("prefetch", "first", "--primary", "default")
        assert first.bytes_sent() - before == sent
        assert host.template("first")["primaries"] == ["default", "fast"]
        assert host.published("first").parent == host.images
        add(host, second)
        host.ddfs("prefetch", "two1", "--primary", "fast")
        assert host.published("two1").parent == fast
        wrong = host.ddfs("prefetch", "two1", "--primary", "nowhere", check=False)
        assert wrong.returncode == 2
        assert "the settings have default, fast" in wrong.stderr
        gone = collect(host, "--unused-for", "0s")
        assert sorted(stored["primary"] for stored in gone["removed"]) == [
            "default",
            "fast",
            "fast",
        ]
        rooms = {room["name"]: room for room in host.api_json("GET", "/v1/status")["primary"]}
        assert rooms["default"]["bytes_held"] == rooms["fast"]["bytes_held"] == 0


def test_doctor_mends_what_disk_and_catalogue_disagree_about(
    host: Host, fast_site: Site, libvirtd: Libvirtd
) -> None:
    name = add(host, images_of(fast_site, "order", 1)[0])
    host.ddfs("prefetch", name)
    path = host.published(name)
    subprocess.run(["chattr", "-i", path], check=False, stderr=subprocess.DEVNULL)
    path.unlink()
    orphan = host.images.with_name(f".ddfs-{host.images.name}") / f"sha-256-{'cd' * 32}.part"
    orphan.write_bytes(bytes(MIB))
    assert ("warn", str(path)) in order_findings(host)
    assert ("ok", str(path)) in order_findings(host, "--fix")
    assert not orphan.exists()
    assert host.template(name)["state"] == "not-downloaded"
    assert order_findings(host) == [("ok", "")]
    # And at the start, without anybody asking.
    orphan.write_bytes(bytes(MIB))
    host.kill()
    host.serve()
    wait_until(lambda: not orphan.exists(), "the orphaned partial file is gone")


def order_findings(host: Host, *options: str) -> list[tuple[str, str]]:
    # Not everything is in order in here: no hook is installed.
    found = json.loads(host.ddfs("doctor", "--json", *options, check=False).stdout)
    checks = [(finding["level"], finding["check"]) for finding in found]
    return [(level, c.partition(" ")[2]) for level, c in checks if c.partition(" ")[0] == "order"]


def test_two_daemons_on_one_directory_fetch_once(directory: Path, fast_site: Site) -> None:
    image = fast_site.publish("together", size=32 * MIB, seed=9)
    shared = directory / "shared"
    with Host(directory / "a", images=shared) as a, Host(directory / "b", images=shared) as b:
        for host in (a, b):
            with_limits(host, "shared = true")
            host.serve()
            add(host, image)
        before = image.bytes_sent()
        for host in (a, b):
            host.api_json("POST", "/v1/prefetch", {"names": ["together"]})
        for host in (a, b):
            host.wait_for_state("together", "downloaded")
        # Twice would be twice; mirrors send some pieces twice in any fetch.
        assert image.bytes_sent() - before < 1.5 * image.size
        assert a.published("together") == b.published("together")
        kept = reasons(collect(a, "--unused-for", "0s"))
        assert kept["together"].startswith("other hosts share")
        refused = a.ddfs("template", "remove", "together", "--purge", check=False)
        assert refused.returncode == 4
        assert "other hosts share this storage" in refused.stderr
        assert b.published("together").exists()
