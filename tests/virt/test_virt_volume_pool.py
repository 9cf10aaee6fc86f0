"""Volumes made, filled and deleted through a real libvirtd, in a pool of type dir."""

import os

import pytest

from ddfs import errors
from ddfs.virt.volume_pool import VolumePool, _next_partition

MIB = 1024 * 1024


@pytest.fixture
def pool(libvirtd):
    """Not active: whoever needs it starts it."""
    directory = libvirtd.directory / "volumes"
    directory.mkdir()
    libvirtd.virsh("pool-define-as", "p", "dir", "--target", directory)
    return VolumePool(libvirtd.uri, "p")


def nothing():
    """Nobody cancels."""


@pytest.fixture
def source(tmp_path):
    """Data, a hole of many chunks, data, and a hole at the end."""
    path = tmp_path / "source"
    with path.open("wb") as file:
        file.write(os.urandom(MIB + 17))
        file.seek(90 * MIB)
        file.write(os.urandom(300_000))
        file.truncate(91 * MIB + 5)
    fd = os.open(path, os.O_RDONLY)
    yield path, fd
    os.close(fd)


def test_a_volume_is_made_filled_and_deleted(libvirtd, pool, source):
    path, fd = source
    data = path.read_bytes()
    total, free = pool.room()
    assert 0 < free <= total
    assert pool.name_for("ddfs-1") == "ddfs-1"
    made = pool.create("ddfs-1", 92 * MIB)
    assert made.capacity == 92 * MIB
    with open(made.path, "r+b") as volume:
        volume.write(b"\xaa" * MIB)
    pool.upload("ddfs-1", fd, len(data), 92 * MIB - 4096, nothing)
    with open(made.path, "rb") as volume:
        found = volume.read()
    assert found[: len(data)] == data
    # What follows is written on devices alone: files end there (virFDStreamThreadDoWrite).
    assert not found[len(data) :].strip(b"\0")
    assert pool.find("ddfs-1").path == made.path
    with pytest.raises(errors.NameTakenError, match="pool p has a volume ddfs-1"):
        pool.create("ddfs-1", MIB)
    pool.delete("ddfs-1")
    pool.delete("ddfs-1")
    assert pool.find("ddfs-1") is None
    assert not os.path.exists(made.path)


def test_a_cancelled_upload_leaves_the_pool_usable(pool, source):
    _, fd = source
    pool.create("ddfs-1", 92 * MIB)
    calls = iter(range(20))

    def cancel():
        if next(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.upload("ddfs-1", fd, 91 * MIB, 92 * MIB, cancel)
    pool.delete("ddfs-1")
    pool.create("ddfs-1", MIB)


def test_libvirt_that_says_no_and_libvirt_that_is_gone(libvirtd, pool):
    with pytest.raises(errors.LibvirtError, match="no storage pool with matching name 'other'"):
        VolumePool(libvirtd.uri, "other").room()
    libvirtd.kill()
    with pytest.raises(errors.LibvirtError, match="libvirtd does not answer"):
        pool.create("ddfs-1", MIB)


@pytest.mark.parametrize(
    ("device", "taken", "name"),
    [
        ("/dev/sdz", set(), "sdz1"),
        ("/dev/sdz", {"sdz1", "sdz3"}, "sdz2"),
        ("/dev/nvme9n1", {"nvme9n1p1"}, "nvme9n1p2"),
    ],
)
def test_a_partition_is_called_as_libvirt_wants_it(device, taken, name):
    assert _next_partition(device, taken) == name
