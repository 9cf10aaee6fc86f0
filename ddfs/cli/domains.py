"""Domains: fetching what they need, then starting them."""

from __future__ import annotations

from typing import Annotated

import typer

from ddfs import errors
from ddfs.cli import output, waiting
from ddfs.cli.session import JsonOption, session_of


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog="Example: ddfs start vm1")(start)


def start(
    context: typer.Context,
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain's name.")],
    as_json: JsonOption = False,
) -> None:
    """Fetch the templates under a domain's disks, then start it.

    Unlike `virsh start` it waits as long as that takes.
    """
    check_domain_name(domain)
    client = session_of(context).client
    found = waiting.wait(client, client.domain_templates(domain))
    waiting.raise_if_missing(found)
    client.start_domain(domain)
    if as_json:
        output.print_json({"domain": domain, "started": True, "templates": found})
        return
    print(f"{domain}: started")


def check_domain_name(domain: str) -> None:
    """Refuse what libvirt refuses, too; it would not fit into an address of the API."""
    if not domain or "/" in domain:
        raise errors.InvalidValueError(f"{domain!r} cannot be a domain's name")
