"""On which line of a TOML document a key stands. tomllib does not tell.

TOML has no statement that reaches into the next one, so a document is taken apart by giving
tomllib one line after the other, with more lines where it is not a whole statement yet
(strings and lists of several lines), and asking what key that was.
"""

from __future__ import annotations

import tomllib
from typing import Any

Path = tuple[str, ...]


def key_lines(text: str) -> dict[Path, int]:
    """The first line (from 1) of each table and key of *text*, which is valid TOML.

    Of what stands in an inline table, the line of that.
    """
    found: dict[Path, int] = {}
    table: Path = ()
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        end, statement = _statement(lines, at)
        for path in _paths(statement):
            whole = path if _is_header(lines[at]) else table + path
            found.setdefault(whole, at + 1)
        if _is_header(lines[at]):
            table = max(_paths(statement), key=len, default=())
        at = end
    return found


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of *path*, or of the nearest table around it; 1 at last."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _statement(lines: list[str], start: int) -> tuple[int, dict[str, Any]]:
    """Where the statement that begins at *start* ends, and what it says."""
    for end in range(start + 1, len(lines) + 1):
        try:
            return end, tomllib.loads("\n".join(lines[start:end]))
        except tomllib.TOMLDecodeError:
            continue
    return len(lines), {}


def _is_header(line: str) -> bool:
    return line.lstrip().startswith("[")


def _paths(statement: dict[str, Any]) -> list[Path]:
    """Every key of a statement, the outer ones first."""
    found: list[Path] = []
    todo: list[tuple[Path, Any]] = [((), statement)]
    while todo:
        path, value = todo.pop()
        if path:
            found.append(path)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = value[0]
        if isinstance(value, dict):
            todo += [((*path, key), inner) for key, inner in value.items()]
    return found
