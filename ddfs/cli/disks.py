"""Templates as disks of domains: attached, or cloned."""

from __future__ import annotations

import re
from typing import Annotated, Final

import typer

from ddfs import errors
from ddfs.cli import output, waiting
from ddfs.cli.domains import check_domain_name
from ddfs.cli.session import JsonOption, Session, complete_template, session_of
from ddfs.cli.text import format_size
from ddfs.control.action_messages import AttachTemplate, ClonedVolume, CloneTemplate

TemplateArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A template.", autocompletion=complete_template)
]

_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4, "P": 1024**5}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog="Example: ddfs attach vm1 rescue.iso sda")(attach)
    app.command(epilog="Example: ddfs clone debian-12 vm1.qcow2 --size 20G")(clone)


def attach(
    context: typer.Context,
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain's name.")],
    name: TemplateArgument,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Its place in the domain, as sda or vdb.")
    ],
    persistent: Annotated[
        bool, typer.Option("--persistent", help="Also for its next starts.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also into a drive that the guest has locked.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a template, then put it into a domain's drive, or attach it as a read-only disk.

    A drive (cdrom, floppy) at TARGET gets it as its medium. A domain that is off can only get
    it for its next start, with --persistent.
    """
    check_domain_name(domain)
    session = session_of(context)
    template = session.template_name(name)
    request = AttachTemplate(template, target, persistent, force)
    try:
        done = session.client.attach(domain, request)
    except errors.NotHereYetError:
        _fetch(session, template)
        done = session.client.attach(domain, request)
    if as_json:
        output.print_json(done)
        return
    what = "the medium" if done.change == "medium" else "a read-only disk"
    print(f"{domain}: {done.path} is {what} at {done.target}")


def clone(
    context: typer.Context,
    name: TemplateArgument,
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="The new volume's name.")],
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="A pool of libvirt. Unless told: default.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The disk's size, as 20G: the template's or more."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="A copy that needs the template no more.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Anew in place of the volume that is there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a disk from a template: a linked overlay, or with --full a copy.

    An overlay needs no byte of the template now; whoever starts a domain on it fetches it.
    With --replace a domain is reinstalled: its disk, which keeps its size unless --size is
    given, is made anew. That is refused while anything runs on it. A pool of type rbd takes
    copies only.
    """
    session = session_of(context)
    template = session.template_name(name)
    wanted = parse_size(size) if size is not None else None
    request = CloneTemplate(template, volume, pool, wanted, full, replace)
    try:
        done = session.client.clone(request)
    except errors.NotHereYetError:
        _fetch(session, template)
        done = session.client.clone(request)
    if as_json:
        output.print_json(done)
        return
    print(_describe(template, done))


def _fetch(session: Session, template: str) -> None:
    client = session.client
    waiting.raise_if_missing(waiting.wait(client, client.prefetch([template])))


def _describe(template: str, done: ClonedVolume) -> str:
    how = {"overlay": f"overlay on {template}", "reflink": f"copy of {template}, blocks shared"}
    text = how.get(done.how, f"copy of {template}")
    again = " anew" if done.replaced else ""
    return f"{done.path}: made{again}, {text}, {done.format}, {format_size(done.capacity)}"


def parse_size(text: str) -> int:
    """Bytes from ``20G``, ``20GiB``, ``512M`` or a plain number; K, M, G, T, P are binary."""
    match = re.fullmatch(r"(\d{1,18})\s?([KMGTP]?)(?:IB|B)?", text.strip().upper(), re.ASCII)
    if match is None or int(match[1]) == 0:
        raise errors.InvalidValueError(f"{text[:40]!r} is no size: write 20G, 512M or bytes")
    return int(match[1]) * _UNITS[match[2]]
