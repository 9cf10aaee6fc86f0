"""Is the package right? Installed in a clean Debian, used there, and removed again.

A debootstrapped system in a temporary directory, booted twice with its own systemd and libvirt
by systemd-nspawn, so that units, their order and the watchdog are the real ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import layout

sys.path.insert(0, str(layout.TOP / "tests" / "system"))

from lab.bootimage import MIB, write_raw

# How this machine reaches the distribution's packages is how the new system does.
_APT_FILES: Final = ("etc/apt/apt.conf.d", "etc/apt/sources.list", "etc/apt/sources.list.d")
_NETWORK_FILES: Final = (
    *("etc/resolv.conf", "etc/hosts"),
    *("etc/ssl/certs", "usr/share/ca-certificates"),
)

# Downloading libvirt and QEMU into it takes most of the time.
_TRIAL_SECONDS: Final = 900

_TRIAL_UNIT: Final = f"""\
[Unit]
Description=What contrib/package --check does
[Service]
Type=oneshot
ExecStart=/bin/bash /root/trial
StandardOutput=append:/root/said
StandardError=append:/root/said
ExecStopPost=/bin/systemctl --no-block poweroff
TimeoutStartSec={_TRIAL_SECONDS}
[Install]
WantedBy=multi-user.target
"""

_MIRROR_UNIT: Final = """\
[Unit]
Description=The only mirror
[Service]
ExecStart=/usr/bin/python3 -m http.server --bind 127.0.0.1 --directory /root/www 8931
[Install]
WantedBy=multi-user.target
"""

_IMAGES: Final = {"disk": "another image", "boot": "booted from its template"}


def check(package: Path) -> int:
    """0 if all holds; what was looked at, and what fails, is printed."""
    missing = [name for name in ("debootstrap", "systemd-nspawn") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        needed = "root" if not missing else " and ".join(missing)
        print(f"contrib/package --check: needs {needed}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="ddfs-clean-", dir="/var/tmp") as directory:
        system = Path(directory)
        try:
            _make(system, package)
            _boot(system)
            if (system / "root/booted-once").exists():
                _boot(system)
        finally:
            # Published images are immutable, also for who tidies up.
            images = system / "var/lib/libvirt/images"
            subprocess.run(["chattr", "-f", "-R", "-i", images], check=False)
        said = (system / "root/said").read_text(errors="replace")
    print(said or "the trial did not run\n", end="")
    is_right = said.endswith("the package is right\n")
    if not is_right:
        print("the package is NOT right")
    return 0 if is_right else 1


def _make(system: Path, package: Path) -> None:
    # It becomes /, which not only root has to get into.
    system.chmod(0o755)
    subprocess.run(
        [
            *("debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus"),
            *(_release(), system),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    # debootstrap's own, which says again what may stand in the directory beside it.
    (system / "etc/apt/sources.list").unlink(missing_ok=True)
    for name in (*_APT_FILES, *_NETWORK_FILES):
        _copy(Path("/") / name, system / name)
    shutil.copy(package, system / "root/ddfs.deb")
    shutil.copy(Path(__file__).with_name("package_trial.sh"), system / "root/trial")
    (system / "root/said").touch()
    (system / "root/www").mkdir()
    for name, line in _IMAGES.items():
        write_raw(system / f"root/www/{name}.img", line, 2 * MIB, seed=len(name + line))
    units = system / "etc/systemd/system"
    (units / "trial.service").write_text(_TRIAL_UNIT)
    (units / "mirror.service").write_text(_MIRROR_UNIT)
    subprocess.run(["systemctl", "-q", "--root", system, "enable", "trial"], check=True)


def _boot(system: Path) -> None:
    """Returns when the system has powered itself off."""
    subprocess.run(
        [
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"),
            *("--bind=/dev/fuse", "--capability=all", "--directory", system),
        ],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_TRIAL_SECONDS + 60,
        # Its filter of system calls refuses what mounts a FUSE file system.
        env={**os.environ, "SYSTEMD_SECCOMP": "0"},
    )


def _release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    return "stable"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
