"""What ddfs imports when installed without the tools of its developers."""

import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement

# Imports everything, and one function that imports late.
_EVERYTHING = """
import importlib, pkgutil, sys
wanted = set(sys.argv[1:])
class Undeclared:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in wanted:
            raise ModuleNotFoundError(f"undeclared: {name}")
sys.meta_path.insert(0, Undeclared())
import ddfs
for module in pkgutil.walk_packages(ddfs.__path__, "ddfs."):
    if not module.name.startswith("ddfs.catalogue.migrations"):
        importlib.import_module(module.name)
from ddfs.image.inspect import inspect_head
print(inspect_head(bytes(65536), size=65536, claimed=None).format.value)
"""


def needed(name: str, seen: set[str]) -> set[str]:
    """The distributions that *name* says it needs, and theirs."""
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        extras = [{"extra": extra} for extra in ("", "socks")]
        found = requirement.name.lower().replace("_", "-").replace(".", "-")
        wanted = requirement.marker is None or any(map(requirement.marker.evaluate, extras))
        if wanted and found not in seen:
            seen.add(found)
            needed(requirement.name, seen)
    return seen


def test_everything_that_is_imported_is_declared() -> None:
    declared = needed("ddfs", {"ddfs"})
    of_developers = {
        module
        for module, distributions in metadata.packages_distributions().items()
        if not {name.lower().replace("_", "-").replace(".", "-") for name in distributions}
        & declared
    }
    assert "pytest" in of_developers
    done = subprocess.run(
        [sys.executable, "-c", _EVERYTHING, *sorted(of_developers)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr[-800:]) == ("img\n", "")
