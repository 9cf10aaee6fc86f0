"""The libvirt pool on the mount."""

from __future__ import annotations

from typing import Annotated

import typer

from ddfs.cli import output
from ddfs.cli.session import JsonOption, session_of
from ddfs.control.messages import PoolStatus

group = typer.Typer(help="The libvirt pool on the mount.", rich_markup_mode=None)


@group.command(epilog="Example: ddfs pool define --name templates")
def define(
    context: typer.Context,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Its name in libvirt.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Define and start the pool; one that is there already on this path is adopted."""
    _show(session_of(context).client.define_pool(name), as_json)


@group.command(epilog="Example: ddfs pool refresh")
def refresh(context: typer.Context, as_json: JsonOption = False) -> None:
    """Make libvirt look at the pool again."""
    _show(session_of(context).client.refresh_pool(), as_json)


@group.command(epilog="Example: ddfs pool undefine")
def undefine(context: typer.Context, as_json: JsonOption = False) -> None:
    """Take the pool away from libvirt. Nothing in it is deleted."""
    _show(session_of(context).client.undefine_pool(), as_json)


def _show(pool: PoolStatus, as_json: bool) -> None:
    if as_json:
        output.print_json(pool)
        return
    state = "active" if pool.active else "not active"
    volumes = "" if pool.volumes is None else f", {pool.volumes} volumes"
    print(f"{pool.name}: {state}, {pool.path}{volumes}")
