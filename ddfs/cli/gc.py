"""Room in primary storage: ``ddfs gc``, ``ddfs pin``, ``ddfs unpin`` and ``ddfs forget``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from ddfs.cli import output
from ddfs.cli.session import JsonOption, session_of
from ddfs.cli.templates import NamesArgument
from ddfs.cli.text import format_size
from ddfs.control.keeping_messages import Collect, Pin, StoredStatus
from ddfs.declaration import parse_duration


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog="Example: ddfs gc --dry-run --unused-for 30d")(gc)
    app.command(epilog="Example: ddfs pin debian-12")(pin)
    app.command(epilog="Example: ddfs unpin debian-12")(unpin)
    app.command(epilog="Example: ddfs forget node7")(forget)


def gc(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be deleted.")
    ] = False,
    unused_for: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Keep what was used within that time, as 12h or 30d."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Delete the published files that no domain, snapshot, overlay or process uses.

    Pinned templates stay, and so does everything when something cannot be looked at. A
    template stays registered, and is fetched again when it is used.
    """
    seconds = None if unused_for is None else float(parse_duration(unused_for))
    done = session_of(context).client.collect(Collect(dry_run, seconds))
    if as_json:
        output.print_json(done)
        return
    rows = [(*_row(stored), "") for stored in done.removed]
    rows += [(*_row(stored), stored.kept_because or "") for stored in done.kept]
    verb = "would go" if dry_run else "gone"
    if rows:
        output.print_table(
            ("FILE", "SIZE", "LAST USED", "", "KEPT BECAUSE"),
            (
                (path, size, used, "kept" if reason else verb, reason)
                for path, size, used, reason in rows
            ),
        )
    print(f"{format_size(done.freed)} {'would be ' if dry_run else ''}freed")


def _row(stored: StoredStatus) -> tuple[str, str, str]:
    used = stored.last_used_at
    when = "never" if used is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
    return stored.path, format_size(stored.size), when


def pin(context: typer.Context, names: NamesArgument, as_json: JsonOption = False) -> None:
    """Never delete these templates to make room."""
    _set(context, names, True, as_json)


def unpin(context: typer.Context, names: NamesArgument, as_json: JsonOption = False) -> None:
    """Let these templates be deleted again when room is needed and nobody uses them."""
    _set(context, names, False, as_json)


def _set(context: typer.Context, names: list[str], pinned: bool, as_json: bool) -> None:
    session = session_of(context)
    found = session.template_names(names)
    session.client.pin(Pin(tuple(found), pinned))
    if as_json:
        output.print_json({"names": found, "pinned": pinned})
        return
    for name in found:
        print(f"{name}: {'pinned' if pinned else 'not pinned'}")


def forget(
    context: typer.Context,
    host: Annotated[
        str, typer.Argument(metavar="HOST", help="Its name or its id, as ddfs gc shows it.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Forget a host that shared a primary storage with this one and is gone for good.

    While a host does not answer, nothing is deleted there, since its domains may need it. This
    says that it has none any more.
    """
    session_of(context).client.forget_host(host)
    if as_json:
        output.print_json({"host": host, "known": False})
        return
    print(f"{host}: forgotten")
