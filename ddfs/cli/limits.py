"""``ddfs limits``: what fetches may take, shown and changed while they run."""

from __future__ import annotations

from typing import Annotated

import typer

from ddfs import config
from ddfs.cli import output
from ddfs.cli.session import JsonOption, session_of
from ddfs.cli.text import format_size
from ddfs.control.messages import ChangeLimits, Limits

BandwidthOption = Annotated[
    str | None, typer.Option(metavar="RATE", help="Bytes per second, as 50MiB; 0 for no limit.")
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog="Example: ddfs limits --bandwidth 50MiB")(limits)


def limits(
    context: typer.Context,
    bandwidth: BandwidthOption = None,
    bandwidth_per_fetch: BandwidthOption = None,
    connections_per_host: Annotated[
        int | None, typer.Option(metavar="N", help="To one server, over all fetches.")
    ] = None,
    fetches_at_once: Annotated[
        int | None, typer.Option(metavar="N", help="The others wait their turn.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what fetches may take, or change it, also for those that run.

    A change lasts until the daemon ends; it starts with what ddfs.toml says.
    """
    change = ChangeLimits(
        None if bandwidth is None else config.parse_bandwidth(bandwidth),
        None if bandwidth_per_fetch is None else config.parse_bandwidth(bandwidth_per_fetch),
        connections_per_host,
        fetches_at_once,
    )
    client = session_of(context).client
    found = client.limits() if change == ChangeLimits() else client.change_limits(change)
    if as_json:
        output.print_json(found)
        return
    output.print_fields(_fields(found))


def _fields(found: Limits) -> list[tuple[str, str]]:
    return [
        ("bandwidth", _rate(found.bandwidth)),
        ("bandwidth per fetch", _rate(found.bandwidth_per_fetch)),
        ("connections per host", str(found.connections_per_host)),
        ("fetches at once", str(found.fetches_at_once)),
    ]


def _rate(bandwidth: int) -> str:
    return f"{format_size(bandwidth)}/s" if bandwidth else "no limit"
