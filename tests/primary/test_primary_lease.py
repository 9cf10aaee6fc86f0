"""Leases between hosts: their clocks do not matter, their deaths do."""

import contextlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from primary_filesystems import mounted

from ddfs.model import MiB
from ddfs.primary.lease import Leases


class Hosts:
    """Hosts with clocks of their own on one directory. Nobody beats unless told."""

    def __init__(self, directory, count=2):
        self.directory = directory
        self.clocks = [1000.0 * number for number in range(count)]
        self.leases = [self.new(number) for number in range(count)]

    def new(self, number):
        return Leases(
            self.directory,
            f"host{number}",
            expiry_seconds=60,
            beat_seconds=3600,
            clock=lambda: self.clocks[number],
        )

    def wait(self, seconds):
        self.clocks = [clock + seconds for clock in self.clocks]

    def close(self):
        for lease in self.leases:
            lease.close()


@pytest.fixture
def hosts(tmp_path):
    hosts = Hosts(tmp_path)
    yield hosts
    hosts.close()


def test_lease_is_one_hosts_until_it_is_released(hosts):
    a, b = hosts.leases
    assert a.claim("x")
    assert a.claim("x")
    assert not b.claim("x")
    assert b.claim("y")
    a.release("x")
    assert b.claim("x")
    assert not a.is_held("x")
    a.release("x")
    assert b.is_held("x")


def test_lease_of_a_living_host_never_expires(hosts):
    a, b = hosts.leases
    assert a.claim("x")
    for _ in range(20):
        hosts.wait(50)
        a.beat()
        assert not b.claim("x")
    assert a.is_held("x")


def test_lease_of_a_dead_host_is_taken_over_and_the_dead_one_notices(hosts):
    a, b = hosts.leases
    assert a.claim("x")
    assert not b.claim("x")
    hosts.wait(59)
    assert not b.claim("x")
    hosts.wait(2)
    assert b.claim("x")
    # It was only asleep.
    a.beat()
    assert not a.is_held("x")
    a.release("x")
    assert b.is_held("x")
    assert not a.claim("x")


def test_lease_that_was_not_watched_before_is_watched_first(hosts):
    a, b = hosts.leases
    assert a.claim("x")
    hosts.wait(3600)
    assert not b.claim("x")
    hosts.wait(61)
    assert b.claim("x")


def test_lease_is_taken_by_one_of_many(tmp_path):
    hosts = Hosts(tmp_path, 16)
    won = []

    def claim(number):
        if hosts.leases[number].claim("x"):
            won.append(number)

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hosts.close()
    assert len(won) == 1


def test_lease_beats_by_itself(tmp_path):
    a = Leases(tmp_path, "a", expiry_seconds=60, beat_seconds=0.01)
    assert a.claim("x")
    first = (tmp_path / "x.1").read_text()
    for _ in range(500):
        if (tmp_path / "x.1").read_text() not in ("", first):
            break
        threading.Event().wait(0.01)
    assert (tmp_path / "x.1").read_text() != first
    a.close()
    assert (tmp_path / "x.1").read_text() == "released"


step = st.tuples(
    st.sampled_from(["claim", "release", "beat", "wait", "restart"]), st.integers(0, 2)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(step, max_size=30))
def test_lease_is_never_held_by_two(tmp_path_factory, steps):
    hosts = Hosts(tmp_path_factory.mktemp("leases"), 3)
    for what, number in steps:
        lease = hosts.leases[number]
        if what == "claim":
            lease.claim("x")
        elif what == "release":
            lease.release("x")
        elif what == "beat":
            lease.beat()
        elif what == "wait":
            hosts.wait(25)
        else:  # it died without a word
            hosts.leases[number] = hosts.new(number)
        assert sum(lease.is_held("x") for lease in hosts.leases) <= 1
    hosts.close()


def fill(path):
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MiB)):
            pass


def test_a_disk_that_is_full_takes_no_lease_away(tmp_path):
    with mounted("tmpfs", tmp_path) as directory:
        a, b = Leases(directory, "a", beat_seconds=3600), Leases(directory, "b", beat_seconds=3600)
        assert a.claim("x")
        fill(directory / "full")
        with pytest.raises(OSError, match="space"):
            b.claim("y")
        a.beat()
        assert a.is_held("x")
        (directory / "full").unlink()
        a.beat()
        assert a.is_held("x")
        # What could not be taken is nobody's.
        assert a.claim("y")
        a.close()
        b.close()
