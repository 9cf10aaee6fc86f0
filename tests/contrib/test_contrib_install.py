"""contrib/install and contrib/uninstall, into a directory that stands for the host."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
UNITS = sorted(p for p in (TOP / "contrib" / "service").iterdir() if "." in p.name)

# systemd.exec(5): each of them gives the service a mount namespace of its own, in which what
# it mounts is out of libvirtd's sight.
HIDING = {
    "PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectSystem", "ProtectHome",
    "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups",
    "ProtectProc", "ProcSubset", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths",
    "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "RootDirectory", "RootImage",
    "DynamicUser", "PrivateUsers", "NoExecPaths", "ExecPaths", "ProtectHostname", "MountFlags",
}  # fmt: skip


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def files(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir()}


def test_installing_twice_and_uninstalling(tmp_path: Path) -> None:
    for _ in range(2):
        done = run(TOP / "contrib/install", "--destdir", tmp_path, "--prefix", "/usr")
        assert done.returncode == 0, done.stderr
        settings = tmp_path / "etc/ddfs/ddfs.toml"
        if "mine" not in settings.read_text():
            settings.write_text("# mine\n")
    assert settings.read_text() == "# mine\n"

    hook = tmp_path / "etc/libvirt/hooks/qemu.d/ddfs"
    assert hook.is_file()
    assert not hook.is_symlink()
    assert os.access(hook, os.X_OK)
    assert "\nddfs_home=/usr/lib/ddfs\n" in hook.read_text()
    assert (tmp_path / "usr/lib/ddfs/ddfs/hook.py").is_file()
    assert (tmp_path / "usr/lib/ddfs/ddfs/fetch/twofold.so.1").is_file()
    assert (tmp_path / "usr/lib/ddfs/ddfs/fetch/records.so.1").is_file()
    assert os.access(tmp_path / "usr/bin/ddfs", os.X_OK)
    assert (
        "ExecStart=/usr/bin/ddfs serve"
        in (tmp_path / "usr/lib/systemd/system/ddfs.service").read_text()
    )
    assert not [p for p in files(tmp_path) if p.endswith(".new")]

    # The launcher, from where it lies now.
    launcher = tmp_path / "launcher"
    text = (tmp_path / "usr/bin/ddfs").read_text()
    launcher.write_text(text.replace('"/usr/lib/ddfs"', f'"{tmp_path}/usr/lib/ddfs"'))
    said = run("/usr/bin/python3", "-I", launcher, "--version")
    assert (said.returncode, said.stdout.split()[0]) == (0, "ddfs")
    launcher.unlink()

    done = run(TOP / "contrib/uninstall", "--destdir", tmp_path, "--prefix", "/usr")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == {"etc/ddfs/ddfs.toml"}
    again = run(TOP / "contrib/uninstall", "--destdir", tmp_path, "--prefix", "/usr")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)


def test_units_do_not_hide_the_mount() -> None:
    for unit in UNITS:
        said = set(re.findall(r"^(\w+)=", unit.read_text(), re.MULTILINE))
        assert not said & HIDING, unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for name in ("ddfs.service", "ddfs-pool.target", "ddfs-autostart.service"):
        text = (TOP / "contrib" / "service" / name).read_text()
        # Whether the program is there is not what is asked.
        text = text.replace("@prefix@/bin/ddfs", "/bin/true")
        (tmp_path / name).write_text(text.replace("@prefix@", "/usr"))
    done = run(
        "systemd-analyze",
        "verify",
        "--man=no",
        "--recursive-errors=no",
        *sorted(tmp_path.iterdir()),
    )
    ours = [line for line in done.stderr.splitlines() if "ddfs" in line]
    assert (done.returncode, ours) == (0, [])
