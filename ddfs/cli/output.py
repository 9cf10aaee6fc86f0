"""Tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ddfs.cli.text import one_line


def print_json(value: object) -> None:
    """One line of JSON: dataclasses as objects, all else that JSON does not know as text."""
    print(json.dumps(value, default=_plain), flush=True)


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return str(value)


def warn(text: str) -> None:
    """One line on standard error, for what is done all the same."""
    print(f"ddfs: warning: {one_line(text)}", file=sys.stderr)


def is_terminal() -> bool:
    """Whether somebody looks at standard output."""
    return sys.stdout.isatty()


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """On a terminal by Rich; else in plain columns, which nothing cuts short or folds."""
    shown = [[one_line(cell) for cell in row] for row in rows]
    if is_terminal():
        from rich.console import Console

        Console().print(rich_table(heads, shown))
        return
    widths = [max(map(len, column)) for column in zip(heads, *shown, strict=True)]
    for row in (heads, *shown):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def rich_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """The table as Rich has it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        # Text, because square brackets in a plain string are Rich's markup.
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table


def print_fields(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name.ljust(width)}  {one_line(value)}")
