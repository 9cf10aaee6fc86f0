"""Progress bars by Rich, on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.table import Column

from ddfs.cli.text import format_seconds, format_size, one_line

# What the figures take at most: all of them, and speed and time left alone.
_LONG_FIGURES: Final = 46
_SHORT_FIGURES: Final = 24
_PERCENT: Final = 6
_LEAST_NAME: Final = 8
_MOST_NAME: Final = 48
_LEAST_BAR: Final = 6


class Bars:
    """Bars for files that are being fetched; speed and time left are the engine's."""

    def __init__(self, progress: Progress, *, is_wide: bool) -> None:
        self._progress = progress
        self._is_wide = is_wide

    def add(self, label: str, size: int) -> TaskID:
        """A new bar for *size* bytes."""
        # Rich would read square brackets as markup.
        shown = one_line(label).replace("[", r"\[")
        return self._progress.add_task(shown, total=size or 1, figures="")

    def update(
        self,
        task: TaskID,
        bytes_here: int,
        bytes_per_second: float,
        seconds_left: float | None,
        busy_mirrors: int,
        waits_for: str | None = None,
    ) -> None:
        """Shows how far it is, and the host that it *waits_for*."""
        figures = [format_size(bytes_here)] if self._is_wide else []
        if waits_for is not None:
            figures = [f"waits for {one_line(waits_for)} to fetch it".replace("[", r"\[")]
        if bytes_per_second:
            figures.append(f"{format_size(bytes_per_second)}/s")
        if seconds_left is not None:
            figures.append(f"{format_seconds(seconds_left)} left")
        if busy_mirrors and self._is_wide:
            figures.append(f"{busy_mirrors} mirror{'s' if busy_mirrors > 1 else ''}")
        self._progress.update(task, completed=bytes_here, figures="  ".join(figures))


@contextlib.contextmanager
def bars() -> Iterator[Bars]:
    """Bars until the end of the block; the last state stays on the screen."""
    console = Console(stderr=True)
    columns, is_wide = _columns(console.width)
    progress = Progress(*columns, console=console, refresh_per_second=5)
    with progress:
        yield Bars(progress, is_wide=is_wide)


def _columns(width: int) -> tuple[list[ProgressColumn], bool]:
    """What fits into *width*, and whether that is all: a long name leaves room for the rest."""
    is_wide = width >= _LEAST_NAME + _LEAST_BAR + _PERCENT + _LONG_FIGURES + 3
    rest = width - _PERCENT - (_LONG_FIGURES if is_wide else _SHORT_FIGURES) - 3
    name = min(_MOST_NAME, max(_LEAST_NAME, rest - 2 * _LEAST_BAR if is_wide else rest))
    short = Column(max_width=name, no_wrap=True, overflow="ellipsis")
    columns: list[ProgressColumn] = [TextColumn("{task.description}", table_column=short)]
    if is_wide:
        columns.append(BarColumn(bar_width=min(40, max(_LEAST_BAR, rest - name))))
    whole = Column(min_width=_PERCENT - 1, no_wrap=True)
    columns.append(TextColumn("{task.percentage:>3.0f} %", table_column=whole))
    columns.append(TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)))
    return columns, is_wide
