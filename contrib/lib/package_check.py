"""Is the package right? Installed in a clean Debian, used there, and removed again.

A debootstrapped system in a temporary directory, with a mount namespace and process ids of
its own. systemd does not run in it: what is checked is that it installs with its
dependencies, that command, hook and daemon work out of it, and that removing it leaves
nothing but what it says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

# How this machine reaches the distribution's packages is how the new system does.
_APT_FILES: Final = ("etc/apt/apt.conf.d", "etc/apt/sources.list", "etc/apt/sources.list.d")
_NETWORK_FILES: Final = (
    "etc/resolv.conf",
    "etc/hosts",
    "etc/ssl/certs",
    "usr/share/ca-certificates",
)


def check(package: Path) -> int:
    """0 if all holds; what fails is printed."""
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        print("contrib/package --check: needs root and debootstrap", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="ddfs-clean-", dir="/var/tmp") as directory:
        system = Path(directory)
        subprocess.run(
            ["debootstrap", "--variant=minbase", _release(), system],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for name in (*_APT_FILES, *_NETWORK_FILES):
            _copy(Path("/") / name, system / name)
        shutil.copy(package, system / "tmp" / "ddfs.deb")
        shutil.copy(Path(__file__).with_name("package_trial.sh"), system / "tmp" / "trial")
        done = subprocess.run(
            [
                "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private",
                "sh", "-c",
                'mount --bind "$1" "$1" && mount -t proc proc "$1/proc"'
                ' && mount --rbind /dev "$1/dev"'
                ' && cd "$1" && mkdir -p old && pivot_root . old && umount -l /old'
                " && exec sh /tmp/trial",
                "sh", system,
            ],
            env={"PATH": os.defpath + ":/usr/sbin:/sbin", "container": "ddfs-check"},
            check=False,
        )  # fmt: skip
        # Published images are immutable, also for who tidies up.
        subprocess.run(["chattr", "-f", "-R", "-i", system / "images"], check=False)
    print("the package is right" if done.returncode == 0 else "the package is NOT right")
    return 1 if done.returncode else 0


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
