"""What doctor finds, on a host of files that the test made."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from ddfs import errors, storages
from ddfs.cli import doctor
from ddfs.config import PrimarySettings, Settings
from ddfs.control.messages import PoolStatus
from tests.cli.conftest import Ddfs
from tests.control.fake import RunningDaemon

TOP = Path(__file__).resolve().parents[2]

MOUNTINFO = rb"""22 28 0:21 / /proc rw,nosuid - proc proc rw
30 28 0:30 / /srv/dd\040fs rw,nosuid,nodev shared:5 master:1 - fuse.ddfs ddfs rw,user_id=0
31 28 0:31 / /srv/both rw - ext4 /dev/sda1 rw
32 31 0:32 / /srv/both rw shared:9 - fuse.ddfs ddfs rw
33 28 0:33 / /srv/disk rw - ext4 /dev/sdb1 rw
"""


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/srv/dd fs", ["fuse.ddfs"]),
        ("/srv/both", ["ext4", "fuse.ddfs"]),
        ("/srv/disk", ["ext4"]),
        ("/srv", []),
    ],
)
def test_mountinfo(path: str, kinds: list[str]) -> None:
    assert doctor.mounted_kinds(Path(path), MOUNTINFO) == kinds


def test_this_hosts_mountinfo_can_be_read() -> None:
    own = Path("/proc/self/mountinfo").read_bytes()
    assert doctor.mounted_kinds(Path("/proc"), own)[-1:] == ["proc"]


def test_mountpoint(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_bytes(MOUNTINFO)

    def level_and_text(path: str, is_served: bool) -> tuple[str, str]:
        found = doctor.mountpoint(Path(path), mountinfo, is_served=is_served)
        return found.level, found.text

    assert level_and_text("/srv/both", True)[0] == doctor.OK
    level, text = level_and_text("/srv/both", False)
    assert (level, "daemon that is gone" in text) == (doctor.FAIL, True)
    level, text = level_and_text("/srv/none", False)
    assert (level, text.endswith("start it with: ddfs serve")) == (doctor.FAIL, True)
    level, text = level_and_text("/srv/disk", True)
    assert (level, "ext4" in text) == (doctor.FAIL, True)


def test_fuse(tmp_path: Path) -> None:
    device = tmp_path / "fuse"
    assert doctor.fuse_device(device).text.endswith("modprobe fuse")
    device.write_text("")
    assert doctor.fuse_device(device).level == doctor.OK
    conf = tmp_path / "fuse.conf"
    conf.write_text("# user_allow_other\n")
    expected = doctor.OK if os.geteuid() == 0 else doctor.WARN
    assert doctor.fuse_conf(conf).level == expected
    conf.write_text("user_allow_other\n")
    assert doctor.fuse_conf(conf).level == doctor.OK


def test_hook(tmp_path: Path) -> None:
    def found() -> doctor.Finding:
        return doctor.hook(tmp_path, Path("/srv/ddfs/templates"))

    assert found().level == doctor.FAIL
    other = tmp_path / "qemu"
    other.write_text("#!/bin/sh\nexit 0\n")
    assert found().level == doctor.FAIL
    (tmp_path / "qemu.d").mkdir()
    ours = tmp_path / "qemu.d" / "ddfs"
    ours.write_text("#!/bin/sh\nexec ddfs-hook\n")
    ours.chmod(0o644)
    assert found().text == f"{ours} is not executable: chmod 755 {ours}"
    ours.chmod(0o755)
    assert found().level == doctor.OK


@pytest.mark.parametrize(
    ("home", "settings", "says"),
    [
        (TOP, 'mountpoint = "/m"', None),
        ("/nonexistent", 'mountpoint = "/m"', "does not work: ddfs: the hook cannot run"),
        (TOP, 'mountpoint = "/elsewhere"', "lets domains that use /m/templates start unasked"),
        (TOP, 'mountpoint = "/m"\nmisspelt = 1', "does not work: ddfs: "),
    ],
)
def test_the_hook_is_tried(tmp_path: Path, home: Path, settings: str, says: str | None) -> None:
    (tmp_path / "ddfs.toml").write_text(settings)
    text = (TOP / "hooks" / "qemu").read_text()
    for name, value in (("ddfs_home", home), ("ddfs_config", tmp_path / "ddfs.toml")):
        assert f"\n{name}=\n" in text
        text = text.replace(f"\n{name}=\n", f"\n{name}='{value}'\n")
    script = tmp_path / "qemu"
    script.write_text(text)
    script.chmod(0o755)
    found = doctor.hook(tmp_path, Path("/m/templates"))
    if says is None:
        assert found.level == doctor.OK
    else:
        assert found.level == doctor.FAIL
        assert says in found.text


def test_primary_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = doctor.primary_storage("default", tmp_path / "none")
    assert (missing.check, missing.level) == ("primary.default", doctor.FAIL)
    monkeypatch.setattr(doctor, "LOW_ROOM_BYTES", 0)
    assert doctor.primary_storage("default", tmp_path).level == doctor.OK
    monkeypatch.setattr(doctor, "LOW_ROOM_BYTES", 2**63)
    low = doctor.primary_storage("default", tmp_path)
    assert (low.level, low.text.endswith("free: make room")) == (doctor.WARN, True)


def test_a_pool_as_primary_storage_has_to_be_active() -> None:
    settings = Settings(primary={"fast": PrimarySettings(pool="vg 0")})
    for listed, level, word in (
        (None, doctor.WARN, "cannot be asked"),
        ("vg\n", doctor.FAIL, "virsh pool-start 'vg 0'"),
        ("vg\nvg 0 \n", doctor.OK, "is active"),
    ):
        found = doctor.primary_pool("fast", settings, lambda *_, said=listed: said)
        assert (found.check, found.level) == ("primary.fast", level)
        assert word in found.text


def test_a_pool_that_was_undefined_is_defined_again_from_what_was_kept(tmp_path: Path) -> None:
    settings = Settings(primary={"fast": PrimarySettings(pool="vg 0")}, state_dir=tmp_path)
    pools: set[str] = set()

    def virsh(_uri: str, arguments: list[str]) -> str | None:
        match arguments:
            case ["pool-define", path]:
                pools.add(Path(path).read_text())
            case ["pool-start", name] if name not in pools:
                return None
        return "\n".join(["other", *sorted(pools)])

    found = doctor.primary_pool("fast", settings, virsh, virsh)
    assert found.level == doctor.FAIL
    assert "virsh pool-define FILE && virsh pool-start 'vg 0'" in found.text
    assert doctor.KEPT_POOLS == storages.KEPT_POOLS
    kept = tmp_path / doctor.KEPT_POOLS / "vg 0.xml"
    kept.parent.mkdir()
    kept.write_text("vg 0")
    found = doctor.primary_pool("fast", settings, virsh)
    assert (found.level, shlex.quote(str(kept)) in found.text) == (doctor.FAIL, True)
    assert doctor.primary_pool("fast", settings, virsh, virsh).level == doctor.OK
    assert doctor.primary_pool("fast", settings, virsh).text == "libvirt's pool vg 0 is active"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_who_may_not_read_what_the_daemon_keeps_is_told_of_the_pool_all_the_same(
    tmp_path: Path,
) -> None:
    settings = Settings(
        primary={
            "fast": PrimarySettings(pool="gone"),
            "slow": PrimarySettings(path=tmp_path / "secret" / "images"),
        },
        state_dir=tmp_path / "secret",
    )
    settings.state_dir.mkdir(mode=0o700)
    os.seteuid(65534)
    try:
        found = doctor.primary_pool("fast", settings, lambda *_: "")
        here = doctor.primary_storage("slow", tmp_path / "secret" / "images")
    finally:
        os.seteuid(0)
    assert (found.level, here.level) == (doctor.FAIL, doctor.FAIL)
    assert "virsh pool-define FILE" in found.text


def test_pool() -> None:
    settings = Settings()
    asked: list[list[str]] = []

    def virsh(uri: str, arguments: list[str]) -> str | None:
        assert uri == "qemu:///system"
        asked.append(arguments)
        if arguments[0] == "pool-list":
            return " default\n templates\n\n"
        return f"<pool><path>/srv/{'ddfs/templates' if 'templates' in arguments else 'x'}</path>"

    found = doctor.pool(settings, virsh)
    assert (found.level, found.text) == (doctor.OK, "templates is active on /srv/ddfs/templates")
    assert asked == [["pool-list", "--name"], *(["pool-dumpxml", n] for n in asked_names(asked))]
    assert doctor.pool(settings, lambda *_: None).level == doctor.WARN
    none = doctor.pool(settings, lambda *_: "")
    assert (none.level, none.text.endswith("ddfs pool define")) == (doctor.WARN, True)


def test_a_missing_pool_is_defined() -> None:
    missing = doctor.pool(Settings(), lambda *_: "")
    made = PoolStatus("ddfs", "/srv/ddfs/templates", active=True, volumes=0)
    found = doctor.defined_pool(missing, lambda: made)
    assert (found.check, found.level) == ("pool", doctor.OK)
    assert found.text == "ddfs was not active on /srv/ddfs/templates, and is now"

    def fail() -> PoolStatus:
        raise errors.DaemonDownError("the daemon is down")

    found = doctor.defined_pool(missing, fail)
    assert (found.check, found.level) == ("pool", doctor.WARN)
    assert found.text == f"{missing.text}; tried that: the daemon is down"


def asked_names(asked: list[list[str]]) -> list[str]:
    return [arguments[1] for arguments in asked[1:]]


def test_the_whole(ddfs: Ddfs, daemon: RunningDaemon) -> None:
    done = ddfs("doctor", "--json")
    findings = {finding["check"]: finding for finding in json.loads(done.out)}
    assert findings["daemon"]["level"] == "ok"
    assert findings["daemon"]["text"] == "version 0, process 1, answers"
    # Nothing is mounted by this fake.
    assert findings["mountpoint"]["level"] == "fail"
    assert done.code == errors.EXIT_HOST
    lines = ddfs("doctor").out.splitlines()
    assert len(lines) == len(findings)
    assert {line.split()[0] for line in lines} <= {"ok", "warn", "fail"}


def test_bad_settings_are_the_only_finding(ddfs: Ddfs, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("x")
    done = ddfs("doctor", "--config", str(bad))
    assert done.code == errors.EXIT_HOST
    assert done.out.startswith(f"fail  settings: {bad}: not valid TOML")
    assert done.out.count("\n") == 1


def test_a_mount_that_nobody_has_is_not_libvirts_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.doctor_host, "libvirt_daemons", lambda: [os.getpid()])
    assert list(doctor.libvirt_sees(tmp_path / "nothing", tmp_path)) == []
    # Something else is mounted there: then libvirt does not see what it has to.
    [found] = doctor.libvirt_sees(Path("/proc"), tmp_path)
    assert (found.level, "does not see the mount" in found.text) == (doctor.FAIL, True)


@pytest.mark.parametrize("name", ["qemu", "qemu.d/ddfs"])
def test_a_hook_that_came_after_libvirtd_may_be_unnoticed_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(doctor.doctor_host, "libvirt_daemons", lambda: [os.getpid()])
    monkeypatch.setattr(doctor, "mounted_kinds", lambda *_: ["fuse.ddfs"])
    hook = tmp_path / name
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexec ddfs-hook\n")
    for started_at, level in ((0.0, doctor.WARN), (2.0**40, doctor.OK)):
        monkeypatch.setattr(doctor.doctor_host, "started_at", lambda _, at=started_at: at)
        [found] = doctor.libvirt_sees(tmp_path, tmp_path)
        assert found.level == level
        assert (f"before {hook} was installed" in found.text) is (level == doctor.WARN)
