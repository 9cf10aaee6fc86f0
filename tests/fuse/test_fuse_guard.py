"""What is left after a daemon, orderly or not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fuse_driver import Driver, Reader, run, wait_for

from ddfs.fuse import mounts
from ddfs.fuse.guard import Guard
from ddfs.fuse.mounts import Mount


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_after_kill_the_symlinks_under_the_mount_come_back(pool: Driver, tmp_path: Path) -> None:
    published = tmp_path / "a@1.img"
    published.write_text("published")
    pool("add", 1, "a.img", 9)
    pool("publish", 1, str(published))
    pool("link", "a.img", str(published))
    guard = pool("status")["guard"]
    pool.kill()
    wait_for(lambda: mounts.top(pool.mountpoint) is None)
    assert Path(pool.path("a.img")).read_text() == "published"
    wait_for(lambda: not is_alive(guard))


def test_the_guard_survives_what_kills_the_daemons_group(pool: Driver) -> None:
    guard = pool("status")["guard"]
    assert os.getpgid(guard) != os.getpgid(pool.process.pid)
    os.kill(guard, signal.SIGTERM)
    os.kill(guard, signal.SIGINT)
    os.killpg(pool.process.pid, signal.SIGKILL)
    pool.process.wait(90)
    wait_for(lambda: mounts.top(pool.mountpoint) is None)


def test_the_guard_ends_with_an_orderly_daemon(pool: Driver) -> None:
    guard = pool("status")["guard"]
    assert is_alive(guard)
    pool.close()
    assert not is_alive(guard)
    assert mounts.top(pool.mountpoint) is None


@pytest.mark.parametrize("_again", range(3))
def test_a_new_daemon_keeps_its_mount_from_the_guard_of_the_old(
    mount: Callable[..., Driver], _again: int
) -> None:
    """The kernel likes to give the new mount the very device number of the old one."""
    old = mount()
    guard = old("status")["guard"]
    os.kill(guard, signal.SIGSTOP)
    old.kill()
    assert mounts.top(old.mountpoint) is not None
    # The guard wakes while the new daemon waits for it.
    pid = os.fork()
    if pid == 0:
        wait_for(lambda: mounts.top(old.mountpoint) is None)
        os.kill(guard, signal.SIGCONT)
        os._exit(0)
    new = mount()
    os.waitpid(pid, 0)
    assert "ready" in new.greeting
    wait_for(lambda: not is_alive(guard))
    new("add", 1, "a.img", 1)
    assert run("stat", new.path("a.img")).returncode == 0


def test_a_mount_of_another_device_is_left_alone(pool: Driver, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    mount = mounts.top(pool.mountpoint)
    assert mount is not None
    other = Mount("0:999999", mount.mountpoint, mount.fs_type, mount.fsname)
    guard = Guard(other, fd)
    os.close(fd)
    assert guard._process.stdin is not None
    guard._process.stdin.close()  # as if the daemon had died
    assert guard._process.wait(90) is not None
    assert mounts.top(pool.mountpoint) == mount


def test_a_dismissed_guard_touches_nothing(pool: Driver, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    mount = mounts.top(pool.mountpoint)
    assert mount is not None
    guard = Guard(mount, fd)
    os.close(fd)
    guard.dismiss()
    assert not is_alive(guard.pid)
    assert mounts.top(pool.mountpoint) == mount


@pytest.mark.parametrize("open_files", [False, True])
def test_the_mount_is_gone_even_with_files_open(pool: Driver, open_files: bool) -> None:
    pool("add", 1, "a.img", 1 << 20)
    reader = None
    if open_files:
        reader = Reader(
            pool.path("a.img"),
            "fd = os.open(path, os.O_RDONLY); print('open', flush=True); sys.stdin.read()",
        )
        assert reader.process.stdout is not None
        assert reader.process.stdout.readline() == b"open\n"
    pool.close()
    assert pool.process.returncode == 0, pool.log.read_text()
    assert mounts.top(pool.mountpoint) is None
    if reader is not None:
        assert reader.is_running()
        reader.kill()
