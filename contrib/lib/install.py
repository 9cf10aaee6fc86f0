"""``contrib/install`` and ``contrib/uninstall``: this checkout as a service of this host."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import layout

# sd_booted(3).
_SYSTEMD: Final = Path("/run/systemd/system")


def main() -> int:
    """Install or uninstall, by the first argument."""
    parser = argparse.ArgumentParser(prog=f"contrib/{sys.argv[1]}", description=_ABOUT[sys.argv[1]])
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"), help="%(default)s")
    parser.add_argument(
        "--destdir", type=Path, default=Path("/"), help="a directory that stands for /"
    )
    arguments = parser.parse_args(sys.argv[2:])
    root, prefix = arguments.destdir.resolve(), arguments.prefix
    if not prefix.is_absolute():
        parser.error(f"--prefix: an absolute path, not {prefix}")
    if not os.access(root, os.W_OK):
        print(f"contrib/{sys.argv[1]}: {root}: not writable; run it as root", file=sys.stderr)
        return 1
    return _ACTIONS[sys.argv[1]](root, prefix)


def install(root: Path, prefix: Path) -> int:
    """Lay it out, and say what the operator does next."""
    layout.lay_out(root, prefix)
    hook = root / "etc/libvirt/hooks/qemu.d/ddfs"
    print(f"installed under {prefix}, with the hook {hook}")
    if root != Path("/"):
        return 0
    if _SYSTEMD.is_dir():
        _run("systemd-sysusers", prefix / "lib/sysusers.d/ddfs.conf")
        _run("systemd-tmpfiles", "--create", prefix / "lib/tmpfiles.d/ddfs.conf")
        _run("systemctl", "daemon-reload")
        print(
            "next: look at /etc/ddfs/ddfs.toml, then\n"
            "  systemctl enable --now ddfs.service ddfs-pool.target ddfs-autostart\n"
            "  systemctl try-reload-or-restart libvirtd virtqemud    # they look for hooks then\n"
            "  ddfs pool define && ddfs doctor"
        )
    else:
        _run("groupadd", "--system", "--force", "ddfs")
        for directory, mode in (("run/ddfs", 0o755), ("var/lib/ddfs", 0o700), ("srv/ddfs", 0o755)):
            (root / directory).mkdir(mode=mode, parents=True, exist_ok=True)
        print(
            "next: look at /etc/ddfs/ddfs.toml, run `ddfs serve` from your service manager before\n"
            "libvirtd starts, let libvirtd look for hooks (SIGHUP), then: ddfs pool define && "
            "ddfs doctor"
        )
    return 0


def uninstall(root: Path, prefix: Path) -> int:
    """Take away what install made; settings, catalogue and images stay."""
    library = root / prefix.relative_to("/") / "lib" / "ddfs"
    files = [path for path in layout.installed_files(root, prefix) if os.path.lexists(path)]
    if not files and not library.exists():
        print(f"contrib/uninstall: no ddfs is installed under {prefix}", file=sys.stderr)
        return 1
    if root == Path("/") and _SYSTEMD.is_dir():
        units = ("ddfs-autostart.service", "ddfs-pool.target", "ddfs.service")
        _run("systemctl", "disable", "--now", *units)
    for path in files:
        path.unlink()
        _remove_empty(path.parent, root)
    shutil.rmtree(library, ignore_errors=True)
    if root == Path("/") and _SYSTEMD.is_dir():
        _run("systemctl", "daemon-reload")
    print(
        "uninstalled. Kept: /etc/ddfs, /var/lib/ddfs and the images in primary storage, which "
        "VMs may stand on. A pool that libvirt still has: virsh pool-undefine ddfs"
    )
    return 0


def _remove_empty(directory: Path, root: Path) -> None:
    """Only directories called after us: others are the host's."""
    if directory.name == "ddfs" and directory != root and not any(directory.iterdir()):
        directory.rmdir()


def _run(*command: str | Path) -> None:
    done = subprocess.run([os.fspath(part) for part in command], check=False)
    if done.returncode != 0:
        print(f"failed, go on by hand: {' '.join(map(str, command))}", file=sys.stderr)


_ACTIONS: Final = {"install": install, "uninstall": uninstall}
_ABOUT: Final = {
    "install": "Install this checkout on this host: command, hook, units, completions.",
    "uninstall": "Take away what contrib/install made; settings, catalogue and images stay.",
}

if __name__ == "__main__":
    sys.exit(main())
