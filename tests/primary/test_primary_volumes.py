"""Templates as volumes, on a pool whose devices are files. The real thing: tests/virt, system."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddfs import errors
from ddfs.model import ByteRange, MiB
from ddfs.primary import device
from ddfs.primary.volumes import VolumeStorage

CONTENT = "sha-256:" + "ab" * 32
OTHER = "sha-256:" + "cd" * 32


class KilledError(BaseException):
    """The process ends here."""


@dataclass
class File:
    """A volume."""

    name: str
    path: str
    capacity: int


class FilePool:
    """Volumes are files full of what was there before, rounded up as devices are.

    ``die_at`` names a call, and ``after`` whether it is done before the process ends.
    """

    name = "pool"

    def __init__(self, directory: Path, total: int = 64 * MiB, *, partitions: bool = False) -> None:
        self.directory = directory
        self.total = total
        self.partitions = partitions
        self.die_at = ""
        self.after = False
        self.is_dead = False
        self.is_down = False
        self.spoil: Callable[[Path], None] = lambda _path: None

    def call(self, what: str, work: Callable[[], object] = lambda: None) -> None:
        if self.is_down:
            raise errors.LibvirtError("libvirtd does not answer")
        if self.is_dead or (self.die_at == what and not self.after):
            self.die()
        work()
        if self.die_at == what:
            self.die()

    def die(self) -> None:
        """Nothing that the storage does afterwards happens."""
        self.is_dead = True
        raise KilledError

    def volumes(self) -> list[str]:
        return sorted(os.listdir(self.directory))

    def room(self) -> tuple[int, int]:
        self.call("room")
        return self.total, self.total - sum(f.stat().st_size for f in self.directory.iterdir())

    def name_for(self, wanted: str) -> str:
        self.call("name_for")
        numbers = (f"p{n}" for n in range(1, 100))
        return next(n for n in numbers if n not in self.volumes()) if self.partitions else wanted

    def create(self, name: str, size: int) -> File:
        path = self.directory / name
        if path.exists():
            raise errors.NameTakenError(f"{name} is there")
        rounded = size if self.partitions else -(-size // MiB) * MiB
        self.call("create", lambda: path.write_bytes(b"\xaa" * rounded))
        return File(name, str(path), rounded)

    def find(self, name: str) -> File | None:
        self.call("find")
        path = self.directory / name
        return File(name, str(path), path.stat().st_size) if path.exists() else None

    def upload(
        self, name: str, source: int, size: int, length: int, check: Callable[[], object]
    ) -> None:
        def write() -> None:
            check()
            data = os.pread(source, size, 0)
            if self.die_at == "upload" and self.after:
                data = data[: size // 2]
            with (self.directory / name).open("r+b") as file:
                file.write(data.ljust(length, b"\0"))

        self.call("upload", write)
        self.spoil(self.directory / name)

    def delete(self, name: str) -> None:
        self.call("delete", lambda: (self.directory / name).unlink(missing_ok=True))


@pytest.fixture
def pool(tmp_path: Path) -> FilePool:
    (tmp_path / "devices").mkdir()
    return FilePool(tmp_path / "devices")


@pytest.fixture
def opened(tmp_path: Path, pool: FilePool) -> Iterator[Callable[..., VolumeStorage]]:
    """A storage on the pool; another one ends the one before, as a restart does."""
    (tmp_path / "staging").mkdir()
    running: list[VolumeStorage] = []

    def make(**arguments: object) -> VolumeStorage:
        for storage in running:
            storage.close()
        pool.is_dead = False
        storage = VolumeStorage("fast", tmp_path / "staging", pool, **arguments)  # type: ignore[arg-type]
        storage.prepare()
        running.append(storage)
        return storage

    yield make
    for storage in running:
        storage.close()


def write_partial(storage: VolumeStorage, data: bytes, content: str = CONTENT) -> Path:
    path = storage.partial_path(content)
    path.write_bytes(data)
    return path


DATA = os.urandom(3 * MiB + 100)


def test_a_volume_has_the_bytes_then_zeros_and_stays_until_it_is_purged(
    opened: Callable[..., VolumeStorage], pool: FilePool
) -> None:
    storage = opened()
    storage.reserve(CONTENT, len(DATA))
    published = storage.publish(write_partial(storage, DATA), "x@1.img")
    storage.discard(CONTENT)
    storage.release(CONTENT)
    assert published.is_volume
    assert published.size == len(DATA)
    stored = Path(published.path).read_bytes()
    assert stored[: len(DATA)] == DATA
    assert stored[len(DATA) : -4096] == bytes(len(stored) - len(DATA) - 4096)
    assert storage.is_intact(published)
    assert storage.leftovers() == {}
    assert storage.room().held == len(stored)
    again = opened()
    assert again.is_intact(published)
    assert again.leftovers() == {}
    again.purge(published)
    assert pool.volumes() == []
    assert again.room().held == 0
    again.purge(published)


@pytest.mark.parametrize("partitions", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("die_at", ["name_for", "create", "upload", "delete"])
def test_wherever_it_is_killed_the_next_try_leaves_one_volume(
    opened: Callable[..., VolumeStorage],
    pool: FilePool,
    die_at: str,
    after: bool,
    partitions: bool,
) -> None:
    pool.partitions = partitions
    storage = opened()
    # So that there is something to delete.
    pool.die_at = "upload"
    with pytest.raises(KilledError):
        storage.publish(write_partial(storage, DATA), "x@1.img")
    pool.die_at = ""
    storage = opened()
    pool.die_at, pool.after = die_at, after
    with pytest.raises(KilledError):
        storage.publish(storage.partial_path(CONTENT), "x@1.img")
    pool.die_at = ""
    storage = opened()
    assert storage.finish_publishing(CONTENT) is None
    published = storage.publish(storage.partial_path(CONTENT), "x@1.img")
    assert Path(published.path).read_bytes()[: len(DATA)] == DATA
    assert len(pool.volumes()) == 1
    # The row was not written: what is complete is found again, and not made twice.
    assert opened().finish_publishing(CONTENT) == published


def test_what_no_fetch_goes_on_with_is_taken_away(
    opened: Callable[..., VolumeStorage], pool: FilePool
) -> None:
    pool.die_at, pool.after = "create", True
    storage = opened()
    with pytest.raises(KilledError):
        storage.publish(write_partial(storage, DATA), "x@1.img")
    pool.die_at = ""
    storage = opened()
    assert set(storage.leftovers()) == {CONTENT}
    storage.discard(CONTENT)
    assert pool.volumes() == []
    assert storage.leftovers() == {}


def test_another_volume_of_that_name_is_never_touched(
    opened: Callable[..., VolumeStorage], pool: FilePool
) -> None:
    storage = opened()
    published = storage.publish(write_partial(storage, DATA), "x@1.img")
    theirs = b"theirs" * len(DATA)
    Path(published.path).write_bytes(theirs)
    assert not storage.is_intact(published)
    with pytest.raises(errors.StorageError, match="not what ddfs put there any more"):
        storage.purge(published)
    with pytest.raises(errors.NameTakenError):
        storage.publish(write_partial(storage, DATA), "x@1.img")
    assert Path(published.path).read_bytes() == theirs


def test_a_disk_that_does_not_keep_what_was_written_is_found_out(
    opened: Callable[..., VolumeStorage], pool: FilePool
) -> None:
    def flip(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(2 * MiB + 7)
            file.write(bytes([DATA[2 * MiB + 7] ^ 1]))

    pool.spoil = flip
    storage = opened()
    with pytest.raises(errors.StorageError, match=f"wrong at byte {2 * MiB + 7} after"):
        storage.publish(write_partial(storage, DATA), "x@1.img")
    assert pool.volumes() == []
    assert storage.finish_publishing(CONTENT) is None


def test_room_counts_promises_and_what_a_crash_left_is_no_obstacle(
    opened: Callable[..., VolumeStorage], pool: FilePool
) -> None:
    pool.total = 10 * MiB
    storage = opened(quota=lambda _total: 9 * MiB)
    storage.reserve(CONTENT, 5 * MiB)
    with pytest.raises(errors.StorageFullError, match="libvirt pool pool") as refused:
        storage.reserve(OTHER, 5 * MiB)
    assert refused.value.missing > 0
    pool.die_at = "upload"
    with pytest.raises(KilledError):
        storage.publish(write_partial(storage, bytes(5 * MiB)), "x@1.img")
    pool.die_at = ""
    storage = opened(quota=lambda _total: 9 * MiB)
    storage.reserve(CONTENT, 5 * MiB)
    storage.publish(storage.partial_path(CONTENT), "x@1.img")
    with pytest.raises(errors.StorageFullError):
        storage.reserve(OTHER, 5 * MiB)
    assert storage.figures()[0] == 10 * MiB


def test_a_cancelled_upload_leaves_nothing(
    opened: Callable[..., VolumeStorage], pool: FilePool
) -> None:
    def cancelled() -> None:
        raise KilledError

    storage = opened(check=cancelled)
    with pytest.raises(KilledError):
        storage.publish(write_partial(storage, DATA), "x@1.img")
    assert pool.volumes() == []
    assert storage.leftovers() == {CONTENT: storage.partial_path(CONTENT).stat().st_blocks * 512}


def test_volumes_that_are_not_to_be_seen_for_a_while_are_found_again(
    opened: Callable[..., VolumeStorage], pool: FilePool
) -> None:
    storage = opened()
    published = storage.publish(write_partial(storage, DATA), "x@1.img")
    pool.is_down = True
    assert opened().is_intact(published)
    # The pool is not active, and libvirt is down: nobody knows.
    os.rename(pool.directory, pool.directory.with_name("away"))
    storage = opened()
    assert not storage.is_intact(published)
    assert storage.finish_publishing(CONTENT) is None
    for ask in (lambda: storage.reserve(CONTENT, len(DATA)), lambda: storage.discard(CONTENT)):
        with pytest.raises(errors.LibvirtError):
            ask()
    pool.is_down = False
    os.rename(pool.directory.with_name("away"), pool.directory)
    storage.reserve(CONTENT, len(DATA))
    assert storage.finish_publishing(CONTENT) == published
    # Deleted by hand, it is nobody's any more.
    Path(published.path).unlink()
    storage.reserve(CONTENT, len(DATA))
    assert storage.finish_publishing(CONTENT) is None
    assert storage.publish(write_partial(storage, DATA), "x@1.img").size == len(DATA)


def test_mending_writes_into_the_volume(
    opened: Callable[..., VolumeStorage], tmp_path: Path
) -> None:
    storage = opened()
    published = storage.publish(write_partial(storage, DATA), "x@1.img")
    with Path(published.path).open("r+b") as file:
        file.seek(MiB)
        file.write(b"damage")
    (tmp_path / "good").write_bytes(DATA)
    fd = os.open(tmp_path / "good", os.O_RDONLY)
    try:
        storage.mend(published, fd, [ByteRange(MiB - 10, 2 * MiB + 10)])
    finally:
        os.close(fd)
    assert Path(published.path).read_bytes()[: len(DATA)] == DATA
    assert storage.is_intact(published)


@given(st.binary(max_size=1000), st.integers(0, 999), st.integers(1, 255))
def test_a_small_image_has_no_byte_that_its_fingerprint_misses(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("device") / "file"
    path.write_bytes(data + b"behind it")
    with device.opened(path) as fd:
        before = device.fingerprint(fd, len(data))
    assert 0 <= before < 2**63
    if at < len(data):
        path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
        with device.opened(path) as fd:
            assert device.fingerprint(fd, len(data)) != before
