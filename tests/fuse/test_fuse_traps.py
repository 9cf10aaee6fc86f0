"""What pyfuse3 does without our cures, and with them. The others are in test_fuse_blocked."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fuse_driver import Driver, Reader, run, wait_for

from ddfs.fuse import mounts

NAME = "a.img"


def prepared(pool: Driver) -> Driver:
    assert "ready" in pool.greeting
    pool("add", 1, NAME, 1 << 20)
    pool("add", 2, "b.img", 1 << 20)
    return pool


# --- an unexpected exception in a handler ------------------------------------------------


def fail_in_a_handler(pool: Driver) -> str:
    pool("break", 1)
    return Reader(pool.path(NAME), "os.getxattr(path, 'user.ddfs.row')").result()


def test_without_guarding_one_bug_ends_the_mount(mount: Callable[..., Driver]) -> None:
    pool = prepared(mount("--no-guarding"))
    fail_in_a_handler(pool)
    assert pool.process.wait(90) != 0
    assert "KeyError" in pool.log.read_text()


def test_guarded_it_is_one_error_for_one_caller(pool: Driver) -> None:
    prepared(pool)
    assert "Input/output error" in fail_in_a_handler(pool)
    assert "Input/output error" in Reader(pool.path(NAME), "open(path, 'rb').read()").result()
    assert pool("crashes").keys() == {"getxattr", "read"}
    assert "KeyError" in pool.log.read_text()
    assert Reader(pool.path("b.img"), "print(len(open(path, 'rb').read()))").result() == "1048576\n"


# --- a caller killed between poll and read -----------------------------------------------


def kill_at_the_wrong_moment(pool: Driver) -> bool:
    """Whether the event loop goes on when a request is withdrawn just before it is read."""
    victim = Reader(
        pool.path(NAME),
        "print('up', flush=True); sys.stdin.readline(); os.path.exists(path + 'x')",
    )
    assert victim.process.stdin is not None
    assert victim.process.stdout is not None
    assert victim.process.stdout.readline() == b"up\n"
    pool("kill_caller", victim.process.pid)
    victim.process.stdin.write(b"\n")
    victim.process.stdin.flush()
    assert victim.process.wait(90) == -signal.SIGKILL
    victim.process.communicate()
    pool.send("requests")
    try:
        return "answer" in pool.hear(2)
    except Exception:
        return False


def test_without_the_second_look_a_killed_caller_freezes_the_loop(
    mount: Callable[..., Driver],
) -> None:
    pool = prepared(mount("--no-session-loop"))
    # Any other request frees it, and on a busy machine somebody may look at all mounts.
    assert not all(kill_at_the_wrong_moment(pool) for _ in range(5))
    run("stat", pool.path("unknown.img"))
    assert "answer" in pool.hear()


def test_with_it_the_loop_goes_on(pool: Driver) -> None:
    prepared(pool)
    assert kill_at_the_wrong_moment(pool)
    assert run("stat", pool.path(NAME)).returncode == 0


def test_a_withdrawal_after_the_second_look_does_no_harm_either(
    mount: Callable[..., Driver],
) -> None:
    pool = prepared(mount("--no-second-look"))
    for _ in range(3):
        assert kill_at_the_wrong_moment(pool)
    assert run("stat", pool.path(NAME)).returncode == 0
    assert pool("crashes") == {}


# --- telling the kernel to forget a name while it looks that name up ---------------------


def publish_while_it_is_looked_up(pool: Driver, tmp_path: Path) -> Reader:
    published = tmp_path / "a@1.img"
    published.write_text("published")
    # The kernel has the name, and asks again because it is another directory entry's turn.
    run("stat", pool.path(NAME))
    pool("publish_in_lookup", "unknown.img", 1, str(published))
    return Reader(pool.path("unknown.img"), "os.path.exists(path); print('asked')")


def test_synchronous_invalidation_deadlocks(mount: Callable[..., Driver], tmp_path: Path) -> None:
    pool = prepared(mount("--synchronous", "--no-guard"))
    asking = publish_while_it_is_looked_up(pool, tmp_path)
    with pytest.raises(AssertionError):
        wait_for(lambda: not asking.is_running(), 2)
    connection = mounts.top(pool.mountpoint)
    assert connection is not None
    mounts.abort(connection.connection_id)
    asking.kill()


def test_asynchronously_both_get_done(pool: Driver, tmp_path: Path) -> None:
    prepared(pool)
    asking = publish_while_it_is_looked_up(pool, tmp_path)
    assert asking.result() == "asked\n"
    wait_for(lambda: run("cat", pool.path(NAME)).stdout == "published")
