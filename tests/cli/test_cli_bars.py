"""What a progress bar shows on terminals of several widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from ddfs.cli import bars

NAME = "debian-12-generic-amd64-20260101-1234.qcow2"


def shown(width: int, name: str = NAME) -> str:
    """The line half way through a gibibyte."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    columns, is_wide = bars._columns(width)
    made = bars.Bars(Progress(*columns, console=console), is_wide=is_wide)
    task = made.add(name, 1 << 30)
    made.update(task, 1 << 29, 123.4 * (1 << 20), 4000.0, 12)
    with console.capture() as captured:
        console.print(made._progress.get_renderable())
    return captured.get().strip("\n")


@pytest.mark.parametrize("width", [72, 80, 100, 200])
def test_a_long_name_hides_nothing_else(width: int) -> None:
    line = shown(width)
    assert "\n" not in line
    assert len(line) <= width
    for figure in (" 50 %", "512.0 MiB ", "123.4 MiB/s", "1 h", "12 mirrors", "━"):
        assert figure in line
    assert line.startswith("debian-")


@pytest.mark.parametrize("width", [40, 50, 60])
def test_a_narrow_terminal_shows_what_matters_most(width: int) -> None:
    line = shown(width)
    assert "\n" not in line
    assert len(line) <= width
    for figure in (" 50 %", "123.4 MiB/s", "1 h"):
        assert figure in line
    assert line.startswith("debian")


def test_a_short_name_stands_whole() -> None:
    assert shown(80, "a[b].iso").startswith("a[b].iso ")
