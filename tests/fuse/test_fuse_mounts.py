from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuse_driver import SERVER, Driver, missing
from hypothesis import given
from hypothesis import strategies as st

from ddfs import errors
from ddfs.fuse import mounts
from ddfs.fuse.mounts import Mount

LINES = (
    "22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n"
    r"42 27 0:39 / /srv/my\040pool\134x ro,nosuid,nodev - fuse.ddfs ddfs ro,user_id=0" + "\n"
    "43 42 0:40 / /srv/my\\040pool\\134x rw shared:1 master:2 - tmpfs none rw\n"
    "nonsense\n"
)


def test_mountinfo_with_escapes_and_optional_fields() -> None:
    sysfs, ours, over = mounts.parse(LINES)
    assert ours == Mount("0:39", "/srv/my pool\\x", "fuse.ddfs", "ddfs")
    assert ours.is_ours
    assert ours.connection_id == 39
    assert not sysfs.is_ours
    assert (over.mountpoint, over.fs_type) == (ours.mountpoint, "tmpfs")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_escaping_can_be_undone(path: str) -> None:
    escaped = mounts.escape(path)
    assert mounts.unescape(escaped) == path
    assert not set(escaped) & set(" \t\n")


def test_escaping_is_the_kernels(tmpfs: Path) -> None:
    assert any(
        line.split(" ")[4] == mounts.escape(str(tmpfs))
        for line in mounts.MOUNTINFO.read_text().splitlines()
    )
    found = mounts.top(tmpfs)
    assert found is not None
    assert found.fs_type == "tmpfs"


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    path = tmp_path / "a #b\\c\td\ne"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=True)
    yield path
    mounts.unmount(path, lazily=True)


def test_makes_the_directory_and_resolves_what_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    made = mounts.prepare(tmp_path / "way" / "deep" / "pool")
    assert made == tmp_path / "real" / "deep" / "pool"
    assert made.is_dir()


def test_refuses_a_file_and_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(errors.MountError, match="not a directory"):
        mounts.prepare(tmp_path / "file")
    with pytest.raises(errors.MountError, match="symlink"):
        mounts.prepare(tmp_path / "link")
    with pytest.raises(errors.MountError, match="cannot be made"):
        mounts.prepare(tmp_path / "file" / "pool")


def test_refuses_what_is_mounted_there_already(tmpfs: Path) -> None:
    with pytest.raises(errors.MountError, match="tmpfs from none is mounted"):
        mounts.prepare(tmpfs)
    assert mounts.top(tmpfs) is not None


def test_says_what_to_do_without_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "DEVICE", tmp_path / "fuse")
    with pytest.raises(errors.MountError, match="modprobe fuse"):
        mounts.prepare(tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


def test_takes_dead_mounts_away_but_not_what_is_over_them(mount: Callable[..., Driver]) -> None:
    dead = mount("--no-guard")
    dead.kill()
    over = mounts.top(dead.mountpoint)
    assert over is not None
    libc = ctypes.CDLL(None)
    assert libc.mount(b"none", os.fsencode(dead.mountpoint), b"tmpfs", 0, None) == 0
    with pytest.raises(errors.MountError, match="tmpfs from none"):
        mounts.prepare(dead.mountpoint)
    mounts.unmount(dead.mountpoint, lazily=True)
    assert mounts.top(dead.mountpoint) == over
    assert mounts.prepare(dead.mountpoint) == dead.mountpoint
    assert mounts.top(dead.mountpoint) is None


def test_a_living_daemon_keeps_its_mount(pool: Driver, mount: Callable[..., Driver]) -> None:
    second = mount()
    assert "another ddfs serves it" in second.greeting["error"]
    assert pool("status")["connection"] is not None
    assert os.path.basename(pool.path("x")) == "x"
    pool("add", 1, "a.img", 10)
    assert subprocess.run(["stat", pool.path("a.img")], capture_output=True).returncode == 0


def test_a_new_daemon_takes_over_from_a_dead_one(mount: Callable[..., Driver]) -> None:
    dead = mount("--no-guard")
    dead.kill()
    alive = mount()
    assert "ready" in alive.greeting
    alive("add", 1, "a.img", 10)
    assert subprocess.run(["stat", alive.path("a.img")], capture_output=True).returncode == 0


def test_a_frozen_daemon_is_not_waited_for(mount: Callable[..., Driver]) -> None:
    frozen = mount("--no-guard")
    frozen.process.send_signal(signal.SIGSTOP)
    assert mounts.prepare(frozen.mountpoint) == frozen.mountpoint
    assert mounts.top(frozen.mountpoint) is None
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.process.wait(90) != 0


def test_says_what_mounting_takes(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run(
        [*without, sys.executable, str(SERVER), str(tmp_path / "pool")],
        input="", capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert "it takes root with CAP_SYS_ADMIN" in json.loads(done.stdout)["error"]
    assert mounts.top(tmp_path / "pool") is None
