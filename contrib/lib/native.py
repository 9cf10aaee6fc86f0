"""Compiles ``ddfs/fetch/twofold.c`` when ddfs is built or installed; pyproject.toml names it.

Where there is no compiler, or it fails, ddfs is installed without: it then hashes by hashlib.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "ddfs/fetch/twofold.c"
# Not just ".so": pkgutil would take it for a module of Python.
LIBRARY = "ddfs/fetch/twofold.so.1"
PLAIN = str.maketrans("-.", "__")
FLAGS = ("-O2", "-fPIC", "-shared", "-Wall", "-Wextra")


class NativeBuildHook(BuildHookInterface):
    """For wheels, and for checkouts that are installed to be edited."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        """Put the library beside its source, and into the wheel."""
        if self.target_name != "wheel":
            return
        if compile_library(Path(self.root)):
            build_data["artifacts"].append(LIBRARY)
            # It knows nothing of Python, so that any will do.
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().translate(PLAIN)}"


def compile_library(top: Path) -> bool:
    """Whether there is a new one; where it fails, there is none."""
    library, fresh = top / LIBRARY, top / f"{LIBRARY}.new"
    compiler = os.environ.get("CC", "cc")
    try:
        subprocess.run([*compiler.split(), *FLAGS, "-o", fresh, top / SOURCE], check=True)
        # Whoever has the old one mapped keeps it.
        fresh.replace(library)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"ddfs: {SOURCE} is not compiled: {error}", file=sys.stderr)
        # One of an older source would not be what the tests were run with.
        with contextlib.suppress(OSError):
            library.unlink(missing_ok=True)
        return False
    return True
