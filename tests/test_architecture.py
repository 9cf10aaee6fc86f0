"""The tree shows the architecture; these tests keep it that way."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ddfs"

# Every room, and the rooms that it may import from. Anything else is an arrow in the wrong
# direction. A room is a top-level module or package of ddfs.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "names": {"errors"},
    "model": {"errors", "names"},
    "config": {"errors"},
    "declaration": {"errors", "model"},
    "versions": {"errors", "model"},
    "apply": {"errors", "names", "model", "declaration"},
    "metalink": {"errors", "model"},
    "filecopy": set(),
    "image": {"errors", "model", "filecopy"},
    "fetch": {"errors", "model", "declaration", "versions"},
    "signature": {"errors", "model"},
    "source": {"errors", "model", "declaration", "metalink", "signature"},
    "spool": {"errors", "model", "fetch", "filecopy"},
    "templates": {"errors", "names", "model", "declaration", "versions", "source", "spool"},
    "limits": {"errors", "config", "fetch", "spool"},
    "gate": {"errors", "model", "image", "spool", "templates"},
    "clone": {"errors", "model", "image", "templates"},
    "changes": {"errors", "model", "templates", "fuse"},
    "deploy": {"errors", "names", "model", "image", "templates", "clone"},
    "fuse": {"errors", "model", "spool", "templates"},
    "keeping": {"errors", "model", "image"},
    "control": {
        "errors", "model", "declaration", "versions", "spool", "templates", "limits", "gate",
        "clone", "deploy", "image", "keeping",
    },
    "primary": {"errors", "model"},
    "storages": {"errors", "model", "config", "image", "primary", "virt"},
    "catalogue": {"errors", "names", "model", "declaration", "versions"},
    "virt": {"errors", "model"},
    "notify": set(),
    "hook": {"errors", "config", "image"},
    "cli": {
        "errors", "apply", "names", "model", "declaration", "versions", "config", "metalink",
        "fetch", "source", "spool",
        "control",
        "image", "daemon",
    },
    "daemon": {
        "errors", "model", "config", "fetch", "image", "spool", "templates", "gate", "fuse",
        "limits", "keeping", "clone", "deploy", "changes", "storages",
        "control", "primary", "catalogue", "virt", "notify",
    },
}  # fmt: skip

# One home for each dependency: nobody else imports it.
HOMES = {
    "pyfuse3": {"fuse"},
    "libvirt": {"virt"},
    "sqlalchemy": {"catalogue"},
    "alembic": {"catalogue"},
    "httpx": {"fetch", "control"},
    "defusedxml": {"metalink", "virt"},
    "oslo_utils": {"image"},
    "pycdlib": {"image"},
    "backports": {"image"},
    "fastapi": {"control"},
    "starlette": {"control"},
    "hypercorn": {"control"},
    "prometheus_client": {"control"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
}

# libvirtd runs the hook at every start: nothing but the standard library, so that it starts
# fast, and also where the environment of the daemon is broken.
STANDARD_LIBRARY_ONLY = ["hook.py", "config.py", "errors.py", "image/chain.py"]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrow"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert imports(path) == []
        return
    assert room in ALLOWED, f"{room} has no place in the architecture yet"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ddfs" and len(parts) > 1 and parts[1] not in (room, "__version__"):
            assert parts[1] in ALLOWED[room], f"{path}: {room} must not import {parts[1]}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_dependency_has_one_home(path: Path) -> None:
    for name in imports(path):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or room_of(path) in homes, f"{path} imports {name}"


def closure(start: Path) -> set[Path]:
    """The modules of ddfs that importing *start* loads."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "ddfs":
                continue
            for end in range(1, len(parts) + 1):
                base = PACKAGE.joinpath(*parts[1:end])
                todo += [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()]
    return seen


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_what_the_hook_runs_needs_only_the_standard_library(name: str) -> None:
    import sys

    for path in closure(PACKAGE / name):
        for imported in imports(path):
            top = imported.split(".")[0]
            assert top == "ddfs" or top in sys.stdlib_module_names, f"{path} imports {imported}"


def test_the_gate_has_no_way_to_libvirt() -> None:
    for path in closure(PACKAGE / "gate.py"):
        assert not any(name.split(".")[0] == "libvirt" for name in imports(path)), path
        assert not any(name.startswith("ddfs.virt") for name in imports(path)), path


def test_files_and_functions_stay_small() -> None:
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 500, f"{path} is long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                # A schema and the wiring of the daemon are lists, and read as such.
                is_list = "versions" in path.parts or path.name == "daemon.py"
                assert lines <= (80 if is_list else 60), f"{path}: {node.name}: {lines} lines"


def test_names_are_terms_of_the_field() -> None:
    vague = re.compile(r"(Manager|Helper|Util|Utils|Misc)$|^utils$|^helpers$")
    for path in modules():
        assert vague.search(path.stem) is None, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert vague.search(node.name) is None, f"{path}: {node.name}"
