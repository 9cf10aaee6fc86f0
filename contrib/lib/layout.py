"""Where the files of an installed ddfs lie, and how they get there.

One tree serves ``contrib/install`` and ``contrib/package``: Python packages of its own under
``PREFIX/lib/ddfs``, because a distribution's may be too old, and everything else where the
host's tools look for it.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).resolve().parents[2]
SERVICE: Final = TOP / "contrib" / "service"

# The interpreter that the packages are built for; the launcher names it, so that an
# environment of the caller cannot put another in its place.
PYTHON: Final = Path("/usr/bin/python3")

# A launcher, not a virtual environment: that could not be moved into a package's tree. -I: no
# variable and no directory of the caller's decides what root imports.
_LAUNCHER: Final = """\
#!{python} -I
import sys

sys.path.insert(0, "{library}")
from ddfs.cli.main import main

main()
"""

# Never overwritten: the operator's.
SETTINGS: Final = Path("etc/ddfs/ddfs.toml")


def lay_out(root: Path, prefix: Path) -> None:
    """Put an installation for *prefix* under *root*; both are absolute.

    ``root`` is ``/`` for this host, else a directory that becomes one. What is there already
    is replaced, but for the settings. Needs the network where packages are not cached.
    """
    library = _under(root, prefix) / "lib" / "ddfs"
    _packages(library)
    _write(
        _under(root, prefix) / "bin" / "ddfs",
        _LAUNCHER.format(python=PYTHON, library=prefix / "lib" / "ddfs"),
        0o755,
    )
    _write(root / "etc/libvirt/hooks/qemu.d/ddfs", _hook(prefix), 0o755)
    _service_files(root, prefix)
    _completions(root, prefix, library)
    documents = _under(root, prefix) / "share" / "doc" / "ddfs"
    for name in ("README.md", "CHANGELOG.md", "LICENSE"):
        _write(documents / name, (TOP / name).read_text(encoding="utf-8"))
    settings = root / SETTINGS
    if not os.path.lexists(settings):
        _write(settings, (SERVICE / "ddfs.toml").read_text(encoding="utf-8"))


def installed_files(root: Path, prefix: Path) -> Iterator[Path]:
    """What :func:`lay_out` puts there beside the library, settings not included."""
    base = _under(root, prefix)
    yield base / "bin" / "ddfs"
    yield root / "etc/libvirt/hooks/qemu.d/ddfs"
    for relative in _SERVICE_FILES.values():
        yield base / "lib" / relative
    for relative in _COMPLETIONS.values():
        yield base / "share" / relative
    for name in ("README.md", "CHANGELOG.md", "LICENSE"):
        yield base / "share" / "doc" / "ddfs" / name


# Under PREFIX/lib.
_SERVICE_FILES: Final = {
    "ddfs.service": "systemd/system/ddfs.service",
    "ddfs-pool.target": "systemd/system/ddfs-pool.target",
    "ddfs-autostart.service": "systemd/system/ddfs-autostart.service",
    "ddfs.sysusers": "sysusers.d/ddfs.conf",
    "ddfs.tmpfiles": "tmpfiles.d/ddfs.conf",
}

_COMPLETIONS: Final = {
    "bash": "bash-completion/completions/ddfs",
    "zsh": "zsh/vendor-completions/_ddfs",
    "fish": "fish/vendor_completions.d/ddfs.fish",
}


def _under(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Whole or not at all, whatever stood there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(mode)
    fresh.replace(path)


def _packages(library: Path) -> None:
    """ddfs and all that it imports, compiled."""
    library.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check",
            "--no-compile", "--upgrade", "--target", os.fspath(library),
            "--constraint", os.fspath(TOP / "contrib" / "requirements.txt"), os.fspath(TOP),
        ],
        check=True,
    )  # fmt: skip
    # Commands of the packages, with this environment's interpreter in their first line.
    for script in (library / "bin").glob("*"):
        script.unlink()
    compileall.compile_dir(library, quiet=2, stripdir=library, prependdir="/")


def _hook(prefix: Path) -> str:
    text = (TOP / "hooks" / "qemu").read_text(encoding="utf-8")
    line = "\nddfs_home=\n"
    if text.count(line) != 1:
        raise SystemExit("hooks/qemu: its line ddfs_home= is not where it was")
    return text.replace(line, f"\nddfs_home={prefix / 'lib' / 'ddfs'}\n")


def _service_files(root: Path, prefix: Path) -> None:
    for name, relative in _SERVICE_FILES.items():
        text = (SERVICE / name).read_text(encoding="utf-8").replace("@prefix@", str(prefix))
        _write(_under(root, prefix) / "lib" / relative, text)


def _completions(root: Path, prefix: Path, library: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ddfs.cli.main import main; main()"
    for shell, relative in _COMPLETIONS.items():
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, os.fspath(library)],
            env={"_DDFS_COMPLETE": f"source_{shell}", "PATH": os.defpath},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if "ddfs" not in done.stdout:
            raise SystemExit(f"no completion for {shell}: ddfs exited with {done.returncode}")
        _write(_under(root, prefix) / "share" / relative, done.stdout)
