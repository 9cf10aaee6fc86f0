"""Room in primary storage: what goes when it is short, and what never does."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.processes import wait_until
from lab.site import MIB, Published, Site

from tests.keeping.life import Judge

MakeVm = Callable[[Host, str, Path], Domain]

NO_GRACE = "[gc]\ngrace = 0\n"

SEQUENCES = 20
STEPS = 3
QUOTA = 7 * MIB


def with_limits(host: Host, limits: str) -> None:
    """Another line for the primary storage; before the daemon starts."""
    text = host.settings.read_text()
    line = f'path = "{host.images}"\n'
    assert line in text
    host.settings.write_text(text.replace(line, f"{line}{limits}\n"))


@pytest.fixture
def host(directory: Path) -> Iterator[Host]:
    """A host whose daemon runs, and protects nothing for having been used just now."""
    with Host(directory / "host", more=NO_GRACE) as host:
        host.serve()
        yield host


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

    recent = reasons(collect(host, "--unused-for", "1h"))
    assert recent[plain].endswith(" s ago")
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
    """Real machines on real overlays, and the judge of the model's thousands of lives."""
    with Host(directory / "host", more=NO_GRACE) as host:
        with_limits(host, f"quota = {QUOTA}")
        host.serve()
        libvirtd.install_hook(host.hook())
        images = images_of(fast_site, "life", 5)
        sizes = {add(host, each): each.image.stat().st_blocks * 512 for each in images}
        life = _Life(host, libvirtd, Judge(sizes, QUOTA))
        for seed in range(SEQUENCES):
            chance = random.Random(seed)
            for _ in range(STEPS):
                life.step(chance, f"sequence {seed}")
            life.end()


class _Life:
    """Virtual machines that come, run, stop and go on one host."""

    def __init__(self, host: Host, libvirtd: Libvirtd, judge: Judge) -> None:
        self.host = host
        self.libvirtd = libvirtd
        self.judge = judge
        self.names = sorted(judge.sizes)
        self.running: set[str] = set()
        self.number = 0

    def step(self, chance: random.Random, when: str) -> None:
        kinds = ["deploy"] * 5 + ["stop"] * 2 + ["delete"] * 2 + ["gc"] * 3 + ["kill"]
        what, name = chance.choice(kinds), chance.choice(self.names)
        when = f"{when}: {what} {name}"
        machines = sorted(self.judge.machines)
        if what == "deploy":
            self.deploy(name, when)
        elif what == "stop" and self.running:
            self.stop(chance.choice(sorted(self.running)))
        elif what == "delete" and machines:
            self.delete(chance.choice(machines))
        elif what == "gc":
            self.host.api_json("POST", "/v1/gc", {"unused_for": 0})
            self.judge.check_collected(when, self.published())
        elif what == "kill":
            # In the middle of a fetch, if it is not here.
            self.host.api_json("POST", "/v1/prefetch", {"names": [name]})
            self.host.kill()
            self.host.serve()
        self.judge.check(when, self.published(), used_bytes(self.host))

    def deploy(self, name: str, when: str) -> None:
        """A machine that runs; with no room for its template there is none."""
        self.number += 1
        machine = f"life{self.number}"
        overlay = self.host.vms / f"{machine}.qcow2"
        size = self.host.template(name)["virtual_size"]
        make_overlay(overlay, self.host.templates / f"{name}.qcow2", virtual_size=size)
        self.libvirtd.define(Domain(machine, (Disk(overlay),)), self.host.vms)
        # Now it is needed, by a machine that cannot be started yet.
        self.host.api_json("POST", "/v1/prefetch", {"names": [name]})
        wait_until(lambda: self.state(name) != "downloading", f"{when}: it has ended")
        started = self.libvirtd.virsh("start", machine, check=False)
        fits = self.judge.fits(name)
        assert (started.returncode == 0) == fits, f"{when}: fits: {fits}; {started.stderr}"
        if fits:
            self.judge.machines[machine] = name
            self.running.add(machine)
        else:
            assert "over the quota" in started.stderr
            self.delete(machine)

    def state(self, name: str) -> str:
        return str(self.host.template(name)["state"])

    def published(self) -> set[str]:
        """As it stands on the disk, whatever the daemon says."""
        return {path.name.partition("@")[0] for path in self.host.images.iterdir()}

    def stop(self, machine: str) -> None:
        self.libvirtd.virsh("destroy", machine)
        self.running.discard(machine)

    def delete(self, machine: str) -> None:
        if machine in self.running:
            self.stop(machine)
        self.libvirtd.virsh("undefine", machine)
        (self.host.vms / f"{machine}.qcow2").unlink()
        self.judge.machines.pop(machine, None)

    def end(self) -> None:
        for machine in list(self.judge.machines):
            self.delete(machine)


def test_two_primary_storages_cost_one_fetch(
    directory: Path, fast_site: Site, libvirtd: Libvirtd
) -> None:
    with Host(directory / "host", more=NO_GRACE) as host:
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
        # Nobody writes the other copy either.
        libvirtd.install_hook(host.hook())
        copy = fast / host.published("first").name
        libvirtd.define(Domain("writer", (Disk(copy),)), host.vms)
        refused = libvirtd.virsh("start", "writer", check=False)
        assert "is the template first.qcow2 itself" in refused.stderr
        libvirtd.virsh("undefine", "writer")
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
        assert image.bytes_sent() - before < 2 * image.size
        assert a.published("together") == b.published("together")


def test_what_was_just_used_stays_whatever_is_asked_for(
    directory: Path, fast_site: Site, libvirtd: Libvirtd
) -> None:
    with Host(directory / "host") as host:
        host.serve()
        name = add(host, images_of(fast_site, "grace", 1)[0])
        host.ddfs("prefetch", name)
        assert reasons(collect(host, "--unused-for", "0s"))[name].endswith(" s ago")
        # What is deleted by name is not asked for its last use, but what cannot be looked at
        # stands in the way there too.
        libvirtd.virsh("pool-define-as", "off", "dir", "--target", host.directory / "off")
        refused = host.ddfs("template", "remove", name, "--purge", check=False)
        assert refused.returncode == 2
        assert "perhaps used: pool off is not active" in refused.stderr
        assert refused.stderr.count("\n") == 1
        libvirtd.virsh("pool-undefine", "off")
        host.ddfs("template", "remove", name, "--purge")
