"""A real mount, used as programs use it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from fuse_driver import Driver, Reader, errno_of, run, wait_for
from fuse_fake import HEAD, content

from ddfs.fuse import attributes, mounts, tuning

MIB = 1 << 20
SIZE = 20 * MIB + 12345


def digest(row: int, size: int) -> str:
    whole = hashlib.sha256()
    for offset in range(0, size, MIB):
        whole.update(content(row, offset, min(MIB, size - offset)))
    return whole.hexdigest()


@pytest.fixture
def template(pool: Driver) -> str:
    """Path of a template whose bytes are here."""
    pool("add", 1, "a.img", SIZE)
    return pool.path("a.img")


HASH = "import hashlib; h = hashlib.sha256(); "
WAYS = {
    "buffered": HASH + "[h.update(c) for c in iter(lambda f=open(path, 'rb'): f.read(99999), b'')]",
    "mmap private": HASH + "import mmap; f = open(path, 'rb'); "
    "h.update(mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ))",
    "mmap shared": HASH + "import mmap; f = open(path, 'rb'); "
    "h.update(mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ))",
    "O_DIRECT": HASH + "import mmap; b = mmap.mmap(-1, 1 << 18); "
    "fd = os.open(path, os.O_RDONLY | os.O_DIRECT); "
    "[h.update(b[:n]) for n in iter(lambda: os.readv(fd, [b]), 0)]",
    "O_NONBLOCK": HASH + "fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK); "
    "[h.update(c) for c in iter(lambda: os.read(fd, 10240), b'')]",
    "sendfile": HASH + "import tempfile; t = tempfile.TemporaryFile(); f = open(path, 'rb'); "
    "o = 0\nwhile n := os.sendfile(t.fileno(), f.fileno(), o, 1 << 20): o += n\n"
    "t.seek(0); h.update(t.read())",
    "backwards": HASH + "fd = os.open(path, os.O_RDONLY); n = os.fstat(fd).st_size; "
    "parts = [os.pread(fd, 70001, o) for o in reversed(range(0, n, 70001))]; "
    "h.update(b''.join(reversed(parts)))",
}


@pytest.mark.parametrize("way", WAYS)
def test_bytes_are_right_whichever_way_they_are_read(template: str, way: str) -> None:
    reader = Reader(template, WAYS[way] + "\nprint(h.hexdigest())")
    assert reader.result().strip() == digest(1, SIZE)


def test_many_threads_at_random_places(template: str) -> None:
    """Odd offsets and sizes, with and without the page cache, from several threads."""
    code = (
        "import hashlib, random, mmap, threading\n"
        "sums = {}\n"
        "def read(seed):\n"
        "    r = random.Random(seed); h = hashlib.sha256()\n"
        "    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if seed % 2 else 0))\n"
        "    b = mmap.mmap(-1, 1 << 18)\n"
        "    for _ in range(60):\n"
        f"        o, n = r.randrange({SIZE}), r.randrange(1, 1 << 18)\n"
        "        if seed % 2: o, n = o & ~4095, (n | 4095) + 1\n"
        "        got = os.preadv(fd, [memoryview(b)[:n]], o); h.update(b[:got])\n"
        "    sums[seed] = h.hexdigest()\n"
        "ts = [threading.Thread(target=read, args=(i,)) for i in range(8)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
        "print(*(sums[i] for i in range(8)))"
    )
    sums = Reader(template, code).result().split()
    assert sums == [random_digest(seed) for seed in range(8)]


def random_digest(seed: int) -> str:
    choice, whole = random.Random(seed), hashlib.sha256()
    for _ in range(60):
        offset, length = choice.randrange(SIZE), choice.randrange(1, 1 << 18)
        if seed % 2:
            offset, length = offset & ~4095, (length | 4095) + 1
        whole.update(content(1, offset, min(length, SIZE - offset)))
    return whole.hexdigest()


def test_copying_programs_copy(pool: Driver, template: str, tmp_path: Path) -> None:
    assert run("cp", "--sparse=always", template, str(tmp_path / "cp")).returncode == 0
    assert hashlib.sha256((tmp_path / "cp").read_bytes()).hexdigest() == digest(1, SIZE)


@pytest.mark.parametrize("options", ["-cf", "-Scf"])
def test_tar_packs_what_is_there_and_no_zeros(pool: Driver, tmp_path: Path, options: str) -> None:
    """It opens with O_NONBLOCK; with -S it takes st_blocks for the truth and reads 512 bytes."""
    size = 3 * HEAD + 5
    pool("add", 1, "a.img", size)
    archive = tmp_path / "a.tar"
    done = run("tar", "-C", str(pool.templates), options, str(archive), "a.img")
    assert done.returncode == 0, done.stderr
    with tarfile.open(archive) as opened:
        member = opened.extractfile("a.img")
        assert member is not None
        assert hashlib.sha256(member.read()).hexdigest() == digest(1, size)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img")
def test_qemu_img_reads(template: str, tmp_path: Path) -> None:
    info = run("qemu-img", "info", "--output=json", "-f", "raw", template)
    assert info.returncode == 0, info.stderr
    assert f'"virtual-size": {-(-SIZE // 512) * 512}' in info.stdout
    copy = str(tmp_path / "copy.img")
    done = run("qemu-img", "convert", "-f", "raw", "-O", "raw", template, copy)
    assert done.returncode == 0, done.stderr
    with open(copy, "rb") as file:
        assert hashlib.sha256(file.read(SIZE)).hexdigest() == digest(1, SIZE)


def test_stat_says_what_is_here(pool: Driver, template: str) -> None:
    def blocks() -> int:
        return int(run("stat", "-c", "%b", template).stdout)

    assert run("stat", "-c", "%a %s %F", template).stdout.strip() == f"444 {SIZE} regular file"
    assert run("stat", "-c", "%a %F", str(pool.templates)).stdout.strip() == "555 directory"
    assert blocks() == 8
    pool("fetch", 1, 8 * MIB, True)
    wait_for(lambda: blocks() == 16384)
    # While it is fetched, progress is seen without anybody being told.
    pool("progress", 1, 16 * MIB)
    wait_for(lambda: blocks() == 32768)


def test_extended_attributes_statfs_and_chown(template: str) -> None:
    shown = Reader(template, "print(os.listxattr(path), os.getxattr(path, 'user.ddfs.state'))")
    assert shown.result().strip() == ("['user.ddfs.state', 'user.ddfs.row'] b'not-downloaded'")
    figures = Reader(template, "s = os.statvfs(path); print(s.f_blocks * s.f_frsize, s.f_namemax)")
    assert figures.result().split() == [str(1 << 40), "255"]
    for change in ("os.chown(path, 1, 1)", "os.chmod(path, 0o600)", "os.unlink(path)",
                   "os.truncate(path, 0)", "os.setxattr(path, 'user.x', b'1')",
                   "os.utime(path)", "os.rename(path, path + 'x')", "os.mkdir(path + 'd')",
                   "open(path + 'n', 'w')", "os.open(path, os.O_RDWR)"):  # fmt: skip
        assert "Read-only file system" in Reader(template, change).result(), change


def test_listing_shows_everything_once_and_new_templates_at_once(pool: Driver) -> None:
    pool("fill", 100, 3000, 4096)
    names = run("ls", "-U", str(pool.templates)).stdout.split()
    assert len(names) == len(set(names)) == 3000
    assert run("ls", pool.path("new.img")).returncode != 0
    pool("add", 5000, "new.img", 1)
    wait_for(lambda: run("ls", pool.path("new.img")).returncode == 0)
    assert run("ls", "-U", str(pool.templates)).stdout.split()[-1] == "new.img"
    pool("remove", 5000)
    wait_for(lambda: run("ls", pool.path("new.img")).returncode != 0)


def test_ten_thousand_in_one_listing(pool: Driver) -> None:
    pool("fill", 0, 10_000, 4096)
    names = run("ls", "-U", str(pool.templates)).stdout.split()
    assert names == [f"t{row:05d}.img" for row in range(10_000)]


def test_publishing_turns_a_known_file_into_a_symlink(
    pool: Driver, template: str, tmp_path: Path
) -> None:
    published = tmp_path / "a@1.img"
    published.write_bytes(b"".join(content(1, o * MIB, MIB) for o in range(20)))
    reader = Reader(
        template,
        "import hashlib\nfd = os.open(path, os.O_RDONLY)\n"
        "before = os.pread(fd, 4096, 0)\nprint('open', flush=True)\nsys.stdin.readline()\n"
        "after = os.pread(fd, 1 << 20, 10 << 20)\n"
        "print(hashlib.sha256(before + after).hexdigest(), os.fstat(fd).st_ino)\n",
    )
    assert reader.process.stdout is not None
    assert reader.process.stdout.readline() == b"open\n"
    pool("publish", 1, str(published))
    wait_for(lambda: run("readlink", template).stdout.strip() == str(published))
    same = run("stat", "-L", "-c", "%d:%i", template).stdout
    assert same == run("stat", "-c", "%d:%i", str(published)).stdout
    # Who had it open reads on, from the inode that he opened.
    out = reader.process.communicate(b"\n", timeout=90)[0].decode().split()
    expected = content(1, 0, 4096) + content(1, 10 * MIB, MIB)
    assert out == [hashlib.sha256(expected).hexdigest(), "18"]
    # And back, when the published file was purged.
    pool("publish", 1, None)
    wait_for(lambda: run("stat", "-c", "%F", template).stdout.strip() == "regular file")


def test_no_open_after_publishing_meets_the_old_file(
    pool: Driver, template: str, tmp_path: Path
) -> None:
    """However fast it comes: the kernel may still have the name, and is sent to look again."""
    published = tmp_path / "a@1.img"
    published.write_bytes(b"published")
    code = (
        "import json\n"
        "for line in sys.stdin:\n"
        "    f = os.open(path, os.O_RDONLY)\n"
        "    print(os.pread(f, 9, 0) == b'published', flush=True)\n"
        "    os.close(f)\n"
    )
    reader = Reader(template, code)
    assert reader.process.stdin is not None
    assert reader.process.stdout is not None
    for _ in range(40):
        pool("publish", 1, None)
        wait_for(lambda: run("stat", "-c", "%F", template).stdout.strip() == "regular file")
        pool("publish", 1, str(published))
        reader.process.stdin.write(b"\n")
        reader.process.stdin.flush()
        assert reader.process.stdout.readline() == b"True\n"
    reader.kill()


def test_an_open_never_waits_and_is_demand(pool: Driver, template: str) -> None:
    pool("stall", 1)
    assert errno_of(template, os.O_RDONLY | os.O_NONBLOCK) == "ok"
    assert pool("demands", 1) == 0
    assert errno_of(template, os.O_RDONLY) == "ok"
    assert pool("demands", 1) == 1


def test_qemu_and_libvirt_are_known_by_their_programs(
    pool: Driver, template: str, tmp_path: Path
) -> None:
    for name in ("qemu-system-x86_64", "libvirtd"):
        shutil.copy(os.path.realpath(sys.executable), tmp_path / name)
    pool("stall", 1)
    hotplug = Reader(template, "os.open(path, os.O_RDONLY)", str(tmp_path / "qemu-system-x86_64"))
    assert "Resource temporarily unavailable" in hotplug.result()
    assert pool("demands", 1) == 1
    header = "import time; t = time.monotonic(); f = open(path, 'rb', 0)\ntry: f.read(33280)\n"
    header += "except OSError as e: print(e.errno, time.monotonic() - t)\n"
    code, seconds = Reader(template, header, str(tmp_path / "libvirtd")).result().split()
    assert code == "5"
    assert float(seconds) > 1.9


def test_refreshing_reads_heads_only(pool: Driver, template: str) -> None:
    pool("stall", 1)
    code = (
        "fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)\n"
        "import hashlib; print(hashlib.sha256(os.read(fd, 33280)).hexdigest())"
    )
    expected = hashlib.sha256(content(1, 0, 33280)).hexdigest()
    assert Reader(template, code).result().strip() == expected
    assert pool("reads", 1) == 0
    assert pool("demands", 1) == 0
    # Nothing was kept of it: a reader gets verified bytes, so he waits.
    reader = Reader(template, "os.read(os.open(path, os.O_RDONLY), 512); print('read')")
    wait_for(lambda: pool("waiting"))
    assert reader.is_running()
    pool("release", 1)
    assert reader.result() == "read\n"


def test_many_templates_cost_few_requests(pool: Driver) -> None:
    """What libvirt does at a refresh, to every file: lstat, open, fstat, read, a label."""
    count = 300
    pool("fill", 0, count, 10 * MIB)
    refresh = (
        "def refresh():\n"
        "    for e in os.listdir(path):\n"
        "        p = path + '/' + e; os.lstat(p)\n"
        "        fd = os.open(p, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY); os.fstat(fd)\n"
        "        try: os.getxattr(fd, 'security.selinux')\n"
        "        except OSError: pass\n"
        "        assert len(os.read(fd, 33280)) == 33280; os.close(fd)\n"
        "for _ in range(3): refresh()\n"
        "print('done')"
    )
    before = sum(pool("requests").values())
    assert Reader(str(pool.templates), refresh).result() == "done\n"
    requests = (sum(pool("requests").values()) - before) / 3
    print(f"{requests / count:.2f} requests a template")
    assert requests / count < 8
    assert pool("crashes") == {}


def test_limits_are_set_on_the_running_mount(pool: Driver) -> None:
    status = pool("status")
    assert status["degraded"] == []
    connection = mounts.CONTROL / str(status["connection"])
    assert int((connection / "max_background").read_text()) == tuning.MAX_BACKGROUND
    assert int((connection / "congestion_threshold").read_text()) == tuning.CONGESTION_THRESHOLD
    ahead = Path(f"/sys/class/bdi/0:{status['connection']}/read_ahead_kb")
    assert int(ahead.read_text()) == tuning.READ_AHEAD_KIB


def test_an_unmount_from_outside_ends_the_pool_with_an_error(pool: Driver) -> None:
    mounts.unmount(pool.mountpoint, lazily=False)
    assert pool.process.wait(90) != 0
    assert "unmounted from outside" in pool.log.read_text()


def test_head_is_what_the_kernel_asks_for(pool: Driver, template: str) -> None:
    """An odd size up to the end of the head is one request, and the next byte is demand."""
    code = (
        f"fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK); os.pread(fd, 7, {HEAD - 7})\n"
        "print(input()); os.pread(fd, 8, %d); print('more')" % (HEAD - 7)
    )
    reader = Reader(template, code)
    assert reader.process.stdin is not None
    assert pool("demands", 1) == 0
    reader.process.stdin.write(b"go\n")
    reader.process.stdin.flush()
    assert reader.result() == "go\nmore\n"
    assert pool("demands", 1) == 1


def test_attributes_of_what_changed_are_forgotten(pool: Driver, template: str) -> None:
    assert attributes.SETTLED_SECONDS > 60

    def is_remembered() -> bool:
        before = pool("requests").get("getattr", 0)
        run("stat", template)
        return bool(pool("requests").get("getattr", 0) == before)

    # The notices of the template's own arrival may reach the kernel after a first stat.
    wait_for(is_remembered)
    assert is_remembered()
    pool("fetch", 1, MIB, False)
    wait_for(lambda: run("stat", "-c", "%b", template).stdout.strip() == "2048")
