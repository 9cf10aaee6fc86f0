"""``ddfs ca``: certificate authorities that this host trusts for its templates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ddfs.cli.session import JsonOption, session_of

group = typer.Typer(
    help="Certificate authorities to trust beside the system's.", rich_markup_mode=None
)


@group.command(epilog="Example: ddfs ca add /root/office-ca.pem --name office")
def add(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One or more in PEM form.")],
    name: Annotated[
        str | None, typer.Option(metavar="N", help="What to call it; else as the file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Trust what FILE has, from the next connection on."""
    from ddfs.cli import output
    from ddfs.fetch import certificates

    added = certificates.add(_directory(context), file, name, time.time())
    if as_json:
        output.print_json(added)
        return
    for certificate in added.certificates:
        left = certificate.days_left(time.time())
        print(f"{added.name}: {certificate.subject}, {left} days left")


@group.command("list", epilog="Example: ddfs ca list --json")
def list_authorities(context: typer.Context, as_json: JsonOption = False) -> None:
    """List what was added, with what is left until it expires."""
    from ddfs.cli import output
    from ddfs.fetch import certificates

    found = certificates.added(_directory(context))
    if as_json:
        output.print_json(found)
        return
    now = time.time()
    rows = [
        (
            file.name,
            certificate.subject,
            time.strftime("%Y-%m-%d", time.gmtime(certificate.expires_at)),
            str(certificate.days_left(now)) if certificate.expires_at > now else "expired",
        )
        for file in found
        for certificate in file.certificates
    ]
    rows += [(file.name, file.problem, "-", "-") for file in found if file.problem is not None]
    output.print_table(("NAME", "SUBJECT", "EXPIRES", "DAYS LEFT"), rows)


@group.command(epilog="Example: ddfs ca remove office")
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As ddfs ca list has it.")],
    as_json: JsonOption = False,
) -> None:
    """Trust it no longer, from the next connection on."""
    from ddfs.cli import output
    from ddfs.fetch import certificates

    certificates.remove(_directory(context), name)
    if as_json:
        output.print_json({"name": name})
        return
    print(f"{name}: removed")


def _directory(context: typer.Context) -> Path:
    from ddfs.fetch.certificates import directory_of

    return directory_of(session_of(context).settings.state_dir)
