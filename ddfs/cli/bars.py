"""Progress bars by Rich, on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ddfs.cli.text import format_seconds, format_size, one_line


class Bars:
    """Bars for files that are being fetched; speed and time left are the engine's."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

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
        figures = format_size(bytes_here)
        if waits_for is not None:
            figures = f"waits for {one_line(waits_for)} to fetch it".replace("[", r"\[")
        if bytes_per_second:
            figures += f"  {format_size(bytes_per_second)}/s"
        if seconds_left is not None:
            figures += f"  {format_seconds(seconds_left)} left"
        if busy_mirrors:
            figures += f"  {busy_mirrors} mirror{'s' if busy_mirrors > 1 else ''}"
        self._progress.update(task, completed=bytes_here, figures=figures)


@contextlib.contextmanager
def bars() -> Iterator[Bars]:
    """Bars until the end of the block; the last state stays on the screen."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
        refresh_per_second=5,
    )
    with progress:
        yield Bars(progress)
