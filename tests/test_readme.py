"""What the README promises in tables is what the code says."""

import errno
from pathlib import Path

from ddfs import errors

README = Path(__file__).resolve().parents[1] / "README.md"


def error_rows() -> list[str]:
    """The table of errors, in the order of the tree."""
    rows: list[str] = []

    def walk(kind: type[errors.DdfsError]) -> None:
        below = kind.__subclasses__()
        if not below:
            number = f"`{errno.errorcode[kind.errno]}`"
            rows.append(f"| {kind.kind()} | {kind.exit_code} | {kind.http_status} | {number} |")
        for leaf in below:
            walk(leaf)

    walk(errors.DdfsError)
    return rows


def test_the_readme_has_every_error_with_its_codes() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    start = lines.index("| error | exit | HTTP | errno |") + 2
    assert lines[start : start + len(error_rows())] == error_rows()
