"""Readers that wait, and everybody else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fuse_driver import PATIENCE_SECONDS, Driver, Reader, run, wait_for

MIB = 1 << 20
BLOCKED = 200

# Half of them through the page cache, which reads ahead, half around it.
READERS = f"""
import threading, mmap
done = []
def read(i):
    flags = os.O_RDONLY | (os.O_DIRECT if i % 2 else 0)
    fd = os.open(path, flags)
    try: done.append(os.preadv(fd, [mmap.mmap(-1, 1 << 20)], (i % 60) << 20))
    except OSError as e: done.append(-e.errno)
threads = [threading.Thread(target=read, args=(i,)) for i in range({BLOCKED})]
[t.start() for t in threads]
print('started', flush=True)
[t.join(90) for t in threads]
print(sorted(set(done)), len(done))
"""


@contextmanager
def blocked(pool: Driver, name: str, at_least: int) -> Iterator[Reader]:
    readers = Reader(pool.path(name), READERS)
    assert readers.process.stdout is not None
    assert readers.process.stdout.readline() == b"started\n"
    wait_for(lambda: pool("waiting") >= at_least)
    try:
        yield readers
    finally:
        if pool.process.poll() is None:
            pool("release", 1)


def read_all(pool: Driver) -> str:
    """How many bytes a sequential read through the page cache gets."""
    return Reader(pool.path("live.img"), "print(len(open(path, 'rb', 0).read()))").result()


def refresh(pool: Driver) -> str:
    """What libvirt does at a refresh; how many files there were."""
    code = (
        "files = [e for e in os.listdir(path) if e[0] == 't']\n"
        "for e in files:\n"
        "    fd = os.open(path + '/' + e, os.O_RDONLY | os.O_NONBLOCK); os.read(fd, 33280)\n"
        "    os.close(fd)\n"
        "print(len(files))"
    )
    return Reader(str(pool.templates), code).result()


def prepare(pool: Driver) -> None:
    pool("add", 1, "dead.img", 64 * MIB)
    pool("add", 2, "live.img", 64 * MIB)
    pool("fill", 100, 200, MIB)
    pool("stall", 1)


def test_two_hundred_blocked_readers_harm_nobody_else(pool: Driver) -> None:
    """Who is behind them in a queue waits until they are released: for ever. What it costs the
    others to have them there is for contrib/bench to say.
    """
    prepare(pool)
    with blocked(pool, "dead.img", BLOCKED // 2) as readers:
        assert read_all(pool) == f"{64 * MIB}\n"
        assert refresh(pool) == "200\n"
        assert readers.is_running()
    assert readers.result() == f"[1048576] {BLOCKED}\n"


def one_read_gets_through(pool: Driver, seconds: float) -> bool:
    reader = Reader(
        pool.path("live.img"),
        "fd = os.open(path, 0); print('up', flush=True); os.pread(fd, 4096, 0); print('read')",
    )
    assert reader.process.stdout is not None
    assert reader.process.stdout.readline() == b"up\n"
    try:
        return bool(wait_for(lambda: not reader.is_running(), seconds))
    except AssertionError:
        return False
    finally:
        reader.kill()


def test_without_raised_limits_they_starve_the_others(mount: Callable[..., Driver]) -> None:
    """The kernel's 12 background requests, all of which wait."""
    pool = mount("--no-limits")
    prepare(pool)
    with blocked(pool, "dead.img", 12):
        assert not one_read_gets_through(pool, 1.0)


def test_without_many_tasks_even_names_wait(mount: Callable[..., Driver]) -> None:
    """pyfuse3's 99 tasks, all of which wait."""
    pool = mount("--few-tasks")
    prepare(pool)
    with blocked(pool, "dead.img", 99):
        wait_for(lambda: pool("waiting") == 99)
        asking = Reader(pool.path("unknown.img"), "os.path.exists(path); print('asked')")
        time.sleep(1)
        assert asking.is_running()
    assert asking.result() == "asked\n"


def test_killed_readers_freeze_nothing(pool: Driver) -> None:
    prepare(pool)
    readers = [
        Reader(pool.path("dead.img"), f"os.pread(os.open(path, 0), 4096, {i << 20}); print('x')")
        for i in range(8)
    ]
    wait_for(lambda: pool("waiting") >= 8)
    for reader in readers:
        reader.kill()
    assert run("stat", pool.path("live.img")).returncode == 0
    assert one_read_gets_through(pool, PATIENCE_SECONDS)
    # What they asked for is answered, to nobody, when it comes.
    pool("release", 1)
    wait_for(lambda: pool("waiting") == 0)
    assert pool("crashes") == {}


def test_readers_see_an_error_as_soon_as_there_is_one(pool: Driver) -> None:
    prepare(pool)
    with blocked(pool, "dead.img", BLOCKED // 2) as readers:
        pool("fail", 1, "MirrorsExhaustedError")
    assert readers.result() == f"[-5] {BLOCKED}\n"


def test_shutting_down_answers_all_readers_at_once(pool: Driver) -> None:
    prepare(pool)
    with blocked(pool, "dead.img", BLOCKED // 2) as readers:
        wait_for(lambda: pool("requests")["open"] >= BLOCKED)
        pool.close()
        assert pool.process.returncode == 0, pool.log.read_text()
        assert readers.result() == f"[-5] {BLOCKED}\n"
    assert os.listdir(pool.templates) == []


def is_quiet(pool: Driver) -> bool:
    """Whether no request has come for a while: all that will are here."""
    before = pool("requests")
    time.sleep(0.1)
    return bool(pool("requests") == before)


def test_being_cancelled_does_the_same(pool: Driver) -> None:
    """As when another part of the daemon fails: nobody calls close()."""
    prepare(pool)
    with blocked(pool, "dead.img", BLOCKED // 2) as readers:
        wait_for(lambda: pool("requests")["open"] >= BLOCKED)
        wait_for(lambda: is_quiet(pool))  # or the interrupt would come in the midst of a handler
        pool.process.send_signal(signal.SIGINT)
        assert pool.process.wait(90) != 0
        assert readers.result() == f"[-5] {BLOCKED}\n"
    assert "KeyboardInterrupt" in pool.log.read_text()
    assert os.listdir(pool.templates) == []
