"""Compiles what ddfs has in C when ddfs is built or installed; pyproject.toml names it.

Where there is no compiler, or it fails, ddfs is installed without, and only takes longer.
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

# Each becomes a library of its name, that ends not just in ".so": pkgutil would take it for a
# module of Python.
SOURCES = ("ddfs/fetch/twofold.c", "ddfs/fetch/records.c")
SUFFIX = ".so.1"
PLAIN = str.maketrans("-.", "__")
FLAGS = ("-O2", "-fPIC", "-shared", "-Wall", "-Wextra")


class NativeBuildHook(BuildHookInterface):
    """For wheels, and for checkouts that are installed to be edited."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        """Put the library beside its source, and into the wheel."""
        if self.target_name != "wheel":
            return
        if made := [source for source in SOURCES if compile_library(Path(self.root) / source)]:
            build_data["artifacts"] += [str(Path(source).with_suffix(SUFFIX)) for source in made]
            # They know nothing of Python, so that any will do.
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().translate(PLAIN)}"


def compile_library(source: Path) -> bool:
    """Whether there is a new one beside *source*; where it fails, there is none."""
    library, fresh = source.with_suffix(SUFFIX), source.with_suffix(f"{SUFFIX}.new")
    compiler = os.environ.get("CC", "cc")
    try:
        subprocess.run([*compiler.split(), *FLAGS, "-o", fresh, source], check=True)
        # Whoever has the old one mapped keeps it.
        fresh.replace(library)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"ddfs: {source.name} is not compiled: {error}", file=sys.stderr)
        # One of an older source would not be what the tests were run with.
        with contextlib.suppress(OSError):
            library.unlink(missing_ok=True)
        return False
    return True
