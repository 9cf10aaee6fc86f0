"""``contrib/package``: a Debian package of this checkout, and a check of it.

Its Python packages are inside it, since a distribution's are older than what ddfs needs;
compiled ones bind it to the Python of the machine that builds it, which the package says.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import layout

PREFIX: Final = Path("/usr")

_CONTROL: Final = """\
Package: ddfs
Version: {version}
Architecture: {architecture}
Section: admin
Priority: optional
Maintainer: The ddfs developers <ddfs@localhost>
Installed-Size: {kib}
Depends: python3 (>= {python}), python3 (<< {next_python}), {libraries}
Recommends: libvirt-daemon-system, libvirt-clients
Description: VM templates on a KVM host before a byte of them is there
 Every registered template is a file in a mounted directory, the template
 pool. When a virtual machine uses it, it is fetched from all its mirrors at
 once, verified and put into primary storage, and a libvirt hook holds the
 machine's start until that is done.
"""

# What the compiled packages link against, and the programs that are run. Of those with a pattern
# the name goes with the release, and the one that is installed is meant.
_LIBRARIES: Final = (
    "fuse3",
    "libfuse3-[0-9]",
    "libvirt0",
    "libnfs1[0-9]",
    "qemu-utils",
    "util-linux",
    "gpgv",
)

# A host that installs from a checkout may do without; a package is for all.
_NATIVE: Final = ("twofold", "records")

_POSTINST: Final = """\
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
if [ -d /run/systemd/system ]; then
    systemd-sysusers /usr/lib/sysusers.d/ddfs.conf
    systemd-tmpfiles --create /usr/lib/tmpfiles.d/ddfs.conf
    systemctl daemon-reload
    systemctl enable ddfs.service ddfs-pool.target ddfs-autostart.service
    if [ -n "$2" ]; then
        # An upgrade: readers of the mount wait for the seconds that this takes.
        systemctl try-restart ddfs.service
    fi
    # libvirt looks for hooks when it starts and when it is reloaded.
    systemctl try-reload-or-restart libvirtd.service virtqemud.service || true
else
    getent group ddfs >/dev/null || groupadd --system ddfs
    mkdir -p /run/ddfs /srv/ddfs
    mkdir -p -m 0700 /var/lib/ddfs
fi
"""

_PRERM: Final = """\
#!/bin/sh
set -e
[ "$1" = remove ] || exit 0
if [ -d /run/systemd/system ]; then
    systemctl disable --now ddfs-autostart.service ddfs-pool.target ddfs.service || true
fi
"""

# The catalogue says what the images in primary storage are: it stays, and so do they.
_POSTRM: Final = """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
if [ "$1" = purge ]; then
    rmdir --ignore-fail-on-non-empty /srv/ddfs /etc/ddfs 2>/dev/null || true
fi
"""

_CONFFILES: Final = "/etc/ddfs/ddfs.toml\n/etc/libvirt/hooks/qemu.d/ddfs\n"


def main() -> int:
    """Build, and with ``--check`` install it in a clean system."""
    parser = argparse.ArgumentParser(prog="contrib/package", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("dist"), help="%(default)s")
    parser.add_argument(
        "--check", action="store_true", help="install it in a clean debootstrap and try it"
    )
    arguments = parser.parse_args()
    package = build(arguments.output)
    print(package)
    if not arguments.check:
        return 0
    import package_check

    return package_check.check(package)


def build(output: Path) -> Path:
    """The package's file, in the directory *output*."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ddfs-package-") as directory:
        tree = Path(directory) / "tree"
        tree.mkdir(mode=0o755)
        layout.lay_out(tree, PREFIX)
        for name in _NATIVE:
            if not (tree / f"usr/lib/ddfs/ddfs/fetch/{name}.so.1").is_file():
                raise SystemExit(f"contrib/package: {name}.c is not compiled; install gcc")
        # Where dpkg knows them as the operator's: systemd and sysusers find both.
        control = tree / "DEBIAN"
        control.mkdir()
        fields = _fields(tree)
        (control / "control").write_text(_CONTROL.format(**fields))
        (control / "conffiles").write_text(_CONFFILES)
        for name, text in (("postinst", _POSTINST), ("prerm", _PRERM), ("postrm", _POSTRM)):
            (control / name).write_text(text)
            (control / name).chmod(0o755)
        package = output / f"ddfs_{fields['version']}_{fields['architecture']}.deb"
        # -Zgzip: xz takes ten times as long for a fifth less.
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, package],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return package


def _fields(tree: Path) -> dict[str, str]:
    major, minor = sys.version_info[:2]
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()
    size = sum(path.lstat().st_size for path in tree.rglob("*"))
    sys.path.insert(0, os.fspath(layout.TOP))
    from ddfs import __version__

    return {
        "version": __version__,
        "architecture": architecture,
        "kib": str(size // 1024),
        "python": f"{major}.{minor}",
        "next_python": f"{major}.{minor + 1}",
        "libraries": ", ".join(_installed(pattern) for pattern in _LIBRARIES),
    }


def _installed(pattern: str) -> str:
    """The Debian package of a plain name, or the one here that a pattern means."""
    if "[" not in pattern:
        return pattern
    found = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", pattern],
        check=False,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    names = [line.partition(" ")[2] for line in found if line.startswith("installed ")]
    if not names:
        raise SystemExit(f"contrib/package: no {pattern} is installed; run contrib/setup")
    return max(names)


if __name__ == "__main__":
    if shutil.which("dpkg-deb") is None:
        sys.exit("contrib/package: dpkg-deb is needed; build the package on Debian")
    sys.exit(main())
