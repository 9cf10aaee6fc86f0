"""What was measured, as lines while it runs and as a table for the README at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench_fetch_material import MIB
from bench_fetch_run import RIGHT, STOPPED, Figures

# Bars for every fetch of ddfs, whatever the case.
MAX_RSS_BYTES: Final = 80 * MIB
MAX_REQUESTS: Final = 60


@dataclass(frozen=True)
class Bar:
    """What ddfs has to reach in a case, and what it did."""

    text: str
    figure: str
    reached: bool


def at_most(what: str, figure: float, limit: float, unit: str = "", digits: int = 2) -> Bar:
    text = f"{what} ≤ {limit:.{digits}f}{unit}"
    return Bar(text, f"{figure:.{digits}f}{unit}", figure <= limit)


def at_least(what: str, figure: float, limit: float, unit: str = "") -> Bar:
    return Bar(f"{what} ≥ {limit:.2f}{unit}", f"{figure:.2f}{unit}", figure >= limit)


def holds(what: str, figure: str, reached: bool) -> Bar:
    return Bar(what, figure, reached)


def memory(figures: Figures) -> Bar:
    return at_most("memory", figures.rss_bytes / MIB, MAX_RSS_BYTES / MIB, " MiB", 0)


def requests(figures: Figures) -> Bar:
    return at_most("requests", figures.requests, MAX_REQUESTS, "", 0)


@dataclass(frozen=True)
class Row:
    """One case: its clients' figures, and the bars of ddfs, which is the first client.

    ``ideal`` is in seconds where the mirrors have a rate.
    """

    name: str
    title: str
    figures: dict[str, Figures]
    bars: tuple[Bar, ...]
    ideal: float | None = None

    @property
    def is_reached(self) -> bool:
        return all(bar.reached for bar in self.bars)

    def speed(self, figures: Figures) -> str:
        """Time over ideal, or MiB/s."""
        if figures.outcome == STOPPED and self.ideal is not None:
            return f"> {figures.seconds / self.ideal:.1f}"
        if self.ideal is not None:
            return f"{figures.seconds / self.ideal:.3f}"
        return f"{figures.rate / MIB:.0f} MiB/s"


def show(row: Row) -> None:
    """The row, as lines for people."""
    ideal = f"; ideal {row.ideal:.2f} s" if row.ideal is not None else ""
    print(f"\n{row.name}: {row.title}{ideal}")
    for client, figures in row.figures.items():
        spread = f"{figures.seconds:7.2f} s"
        if len(figures.calls) > 1:
            spread += f" to {figures.most_seconds:.2f} s"
        print(
            f"  {client:16} {spread}  {row.speed(figures):>10}"
            f"  {figures.cpu_per_gib:5.2f} CPU s/GiB  {figures.rss_bytes / MIB:5.0f} MiB"
            f"  {figures.requests:4} requests  {figures.outcome}"
        )
    for bar in row.bars:
        print(f"  {'ok    ' if bar.reached else 'MISSED'} {bar.text}: {bar.figure}")
    ours = next(iter(row.figures.values()), None)
    if not row.is_reached and ours is not None and ours.outcome != RIGHT:
        for line in ours.calls[-1].run.log.splitlines()[-4:]:
            print(f"         | {line[:160]}")
    print(end="", flush=True)


def markdown(rows: list[Row]) -> str:
    """A table: a line for each case, a column for each client that was in any of them."""
    clients = list(dict.fromkeys(_column(c) for row in rows for c in row.figures))
    head = ["case", *clients, "bars for ddfs"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = {_column(client): _cell(row, figures) for client, figures in row.figures.items()}
        bars = "; ".join(
            f"{bar.text}: {bar.figure}" if bar.reached else f"**{bar.text}: {bar.figure}, missed**"
            for bar in row.bars
        )
        lines.append(_line([row.title, *(cells.get(client, "") for client in clients), bars]))
    return "\n".join(lines)


def _column(client: str) -> str:
    return client.removesuffix(" --json")


def _cell(row: Row, figures: Figures) -> str:
    outcome = "" if figures.outcome == RIGHT else f", {figures.outcome}"
    return (
        f"{row.speed(figures)}{outcome} ({figures.cpu_per_gib:.1f} s/GiB, "
        f"{figures.rss_bytes / MIB:.0f} MiB, {figures.requests} req)"
    )


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
