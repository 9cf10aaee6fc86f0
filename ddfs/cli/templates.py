"""Templates: registering, listing, fetching."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from ddfs import errors, model
from ddfs.cli import apply, output, verify, versions, waiting
from ddfs.cli.access_options import for_daemon, warn_of_exposed, with_access
from ddfs.cli.paths import absolute
from ddfs.cli.session import JsonOption, Session, complete_template, session_of
from ddfs.cli.source_options import (
    ChecksumOption,
    ChecksumUrlOption,
    FileOption,
    KeyringOption,
    NoKeyringOption,
    SignatureOption,
    UnverifiedOption,
)
from ddfs.cli.text import format_image_size, format_seconds, format_size, one_line
from ddfs.control.keeping_messages import Place
from ddfs.control.messages import AddTemplate, TemplateStatus
from ddfs.names import validate_template_name
from ddfs.versions import Verdict

# How often `status --watch` looks.
WATCH_SECONDS: Final = 1.0

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A template: NAME, NAME.FORMAT or its path in the mount.",
        autocompletion=complete_template,
    ),
]
NamesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME",
        help="Templates: NAME, NAME.FORMAT or a path in the mount.",
        autocompletion=complete_template,
    ),
]

PrimaryOption = Annotated[
    str | None,
    typer.Option("--primary", metavar="NAME", help="The primary storage that it goes to."),
]

group = typer.Typer(help="Register, list and remove templates.", rich_markup_mode=None)


@group.command(
    epilog="Example: ddfs template add debian-12 https://example.org/debian-12.qcow2.meta4"
)
@with_access
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, for ever.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A metalink's address or path, or an image's address."
        ),
    ],
    access: Mapping[str, Any],
    image_format: Annotated[
        str | None,
        typer.Option("--format", metavar="F", help="qcow2, raw, iso, vmdk, vhd or vhdx."),
    ] = None,
    checksum: ChecksumOption = None,
    checksum_url: ChecksumUrlOption = None,
    signature: SignatureOption = None,
    keyring: KeyringOption = None,
    no_keyring: NoKeyringOption = False,
    file: FileOption = None,
    unverified: UnverifiedOption = False,
    unpacked_checksum: Annotated[
        str | None, typer.Option(metavar="ALG:HEX", help="What it must match once unpacked.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Its size once it is unpacked.")
    ] = None,
    primary: PrimaryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a template. It appears in the pool at once; it is fetched when it is used.

    SOURCE is an address (http, https, nfs), or a path of this host that the daemon can read.
    """
    validate_template_name(name)
    request = AddTemplate(
        name,
        absolute(source),
        format=image_format,
        checksum=checksum,
        checksum_url=checksum_url,
        signature=signature,
        keyring=None if keyring is None else absolute(keyring),
        no_keyring=no_keyring,
        file=file,
        unverified=unverified,
        unpacked_checksum=unpacked_checksum,
        size=size,
        primary=primary,
        **for_daemon(access),
    )
    warn_of_exposed(access)
    _print_added(session_of(context).client.add_template(request), as_json)


def _print_added(status: TemplateStatus, as_json: bool) -> None:
    if as_json:
        output.print_json(status)
        return
    print(f"{status.path}: {_size(status)}, {status.state}")
    if status.unverified:
        output.warn("nothing verifies it: what the first fetch brings is what it is, for ever")
    elif status.weak is not None:
        output.warn(f"only {status.weak} to verify it by, which can be forged")


@group.command("list", epilog="Example: ddfs template list --json")
def list_templates(context: typer.Context, as_json: JsonOption = False) -> None:
    """List all templates."""
    found = session_of(context).client.templates()
    if as_json:
        output.print_json(found)
        return
    heads = ("NAME", "FORMAT", "SIZE", "VIRTUAL", "STATE", "NEWER", "SOURCE")
    output.print_table(heads, (_list_row(status) for status in found))


@group.command(epilog="Example: ddfs template show debian-12")
def show(context: typer.Context, name: NameArgument, as_json: JsonOption = False) -> None:
    """Show everything about a template, its mirrors included."""
    session = session_of(context)
    status = session.client.template(session.template_name(name))
    if as_json:
        output.print_json(status)
        return
    output.print_fields(_fields(status))
    if status.mirrors:
        print()
        output.print_table(
            ("MIRROR", "STATE", "RECEIVED", "SPEED", "REJECTED", "LAST ERROR"),
            (
                (
                    mirror.url,
                    mirror.state,
                    format_size(mirror.bytes_received),
                    f"{format_size(mirror.bytes_per_second)}/s",
                    str(mirror.rejected_pieces),
                    mirror.last_error or "-",
                )
                for mirror in status.mirrors
            ),
        )


@group.command(epilog="Example: ddfs template remove debian-11 --purge")
def remove(
    context: typer.Context,
    name: NameArgument,
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete its file in primary storage, too.")
    ] = False,
    all_versions: Annotated[
        bool, typer.Option("--all-versions", help="All versions that nothing uses.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove a template from the pool; one that is in use is refused.

    Of a template with several versions one has to be named, as debian-12@2 or
    debian-12@1, unless all are meant.
    """
    session = session_of(context)
    found = session.template_name(name)
    if all_versions:
        _remove_all(session, found, purge, as_json)
        return
    session.client.remove_template(found, purge=purge)
    if as_json:
        output.print_json({"name": found, "purged": purge})
        return
    print(_removed(found, purge))


group.command(epilog="Example: ddfs template check")(versions.check)
group.command(epilog="Example: ddfs template update debian-12")(versions.update)
group.command(epilog="Example: ddfs template apply /etc/ddfs/templates.d --diff")(apply.apply)
group.command(epilog="Example: ddfs template verify debian-12 --repair")(verify.verify)
group.command(epilog="Example: ddfs template export > templates.toml")(apply.export)


def _removed(name: str, purge: bool) -> str:
    # The daemon keeps a file while another name has the same content.
    files = "and its file in primary storage, unless another template has the same one"
    return f"{name}: removed, {files}" if purge else f"{name}: removed"


def _remove_all(session: Session, name: str, purge: bool, as_json: bool) -> None:
    from ddfs import errors

    removed = session.client.remove_versions(name, purge=purge)
    if as_json:
        output.print_json(removed)
    else:
        for gone in removed.names:
            print(_removed(gone, purge))
    if removed.kept:
        count = len(removed.kept) + len(removed.names)
        raise errors.TemplateInUseError(
            f"{len(removed.kept)} of {count} versions stay: {'; '.join(removed.kept)}"
        )


def register(app: typer.Typer) -> None:
    """Adds the commands that stand without ``template`` before them."""
    app.command(epilog="Example: ddfs prefetch debian-12 alpine --no-wait")(prefetch)
    app.command(epilog="Example: ddfs status debian-12 --watch")(status)
    app.command(epilog="Example: ddfs cancel debian-12")(cancel)


def prefetch(
    context: typer.Context,
    names: NamesArgument,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until they are here.")
    ] = True,
    seeds: Annotated[
        list[str] | None,
        typer.Option(
            "--seed", metavar="FILE", help="A file that may have parts of it. Repeatable."
        ),
    ] = None,
    primary: PrimaryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch templates now, also those whose last fetch failed, and wait for them.

    With --primary they are fetched to that primary storage, or copied there if they are here.
    """
    session = session_of(context)
    wanted = session.template_names(names)
    if primary is not None and seeds:
        raise errors.InvalidValueError("--seed: not together with --primary")
    if primary is not None:
        session.client.place(Place(tuple(wanted), primary, wait=False))
    found = session.client.prefetch(wanted, [absolute(seed) for seed in seeds or ()])
    if wait:
        found = waiting.wait(session.client, found)
        if primary is not None and all(one.published_path for one in found):
            session.client.place(Place(tuple(wanted), primary))
    if as_json:
        output.print_json(found)
    else:
        for one in found:
            print(waiting.describe(one))
    if wait:
        waiting.raise_if_missing(found)


def cancel(context: typer.Context, names: NamesArgument, as_json: JsonOption = False) -> None:
    """End the fetches of templates; what is here already is kept."""
    session = session_of(context)
    found = session.client.cancel(session.template_names(names))
    if as_json:
        output.print_json(found)
        return
    for one in found:
        print(waiting.describe(one))


def status(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]", help="Only these.", autocompletion=complete_template),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how far templates are, and what the daemon does."""
    session = session_of(context)
    found = session.template_names(names or [])
    if not watch:
        _print_status(session, found, as_json)
    elif as_json or not output.is_terminal():
        while True:
            _print_status(session, found, as_json)
            time.sleep(WATCH_SECONDS)
    else:
        _watch(session, found)


def _print_status(session: Session, names: Sequence[str], as_json: bool) -> None:
    daemon = session.client.daemon_status()
    found = session.client.templates(names)
    if as_json:
        output.print_json({"daemon": daemon, "templates": found})
        return
    if not names:
        print(
            f"ddfs {daemon.version} at {daemon.templates_dir}: {daemon.total} templates, "
            f"{daemon.published} here, {daemon.fetching} on their way, {daemon.failed} failed"
        )
    output.print_table(_STATUS_HEADS, map(_status_row, found))
    changed = [each for each in found if each.is_newest and _is_changed(each)]
    if names:
        for each in changed:
            print(one_line(f"{each.name}: {each.source_message}"))
    elif changed:
        print(f"changed at their source, see ddfs template list: {len(changed)}")


def _is_changed(status: TemplateStatus) -> bool:
    return status.source_verdict == Verdict.CHANGED.value


def _watch(session: Session, names: Sequence[str]) -> None:
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        while True:
            rows = map(_status_row, session.client.templates(names))
            live.update(output.rich_table(_STATUS_HEADS, rows), refresh=True)
            time.sleep(WATCH_SECONDS)


def _size(status: TemplateStatus) -> str:
    return format_image_size(status.size, status.packed_size, status.size_is_known)


_STATUS_HEADS = ("NAME", "STATE", "HERE", "OF", "SPEED", "LEFT", "LAST ERROR")


def _status_row(status: TemplateStatus) -> tuple[str, ...]:
    is_fetching = status.state == model.SpoolState.FETCHING.value
    waits = f", waits for {status.waits_for}" if status.waits_for is not None else ""
    return (
        status.name,
        status.state + waits,
        format_size(status.bytes_here),
        _size(status),
        f"{format_size(status.bytes_per_second)}/s" if is_fetching else "-",
        format_seconds(status.seconds_left),
        status.last_error or "-",
    )


def _list_row(status: TemplateStatus) -> tuple[str, ...]:
    virtual = "-" if status.virtual_size is None else format_size(status.virtual_size)
    size = _size(status)
    state = f"{status.state}, pinned" if status.pinned else status.state
    state += ", unverified" if status.unverified else ""
    state += ", signed" if status.signed else ""
    state += f", only {status.weak}" if status.weak else ""
    newer = newer_version(status)
    return (status.name, status.format, size, virtual, state, newer, status.source)


def newer_version(status: TemplateStatus) -> str:
    """Where there is a newer version: here, or only at the source; a dash for nowhere."""
    if not status.is_newest:
        return "here"
    return "at source" if _is_changed(status) else "-"


def _source_fields(status: TemplateStatus) -> list[tuple[str, str]]:
    fields = []
    if not status.is_newest:
        fields.append(("newer version", f"here, as {status.family}"))
    if status.checked_at is not None and status.is_newest:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.checked_at))
        note = f": {status.source_message}" if status.source_message else ""
        fields.append(("source checked", f"{when}, {status.source_verdict}{note}"))
    if status.check_every is not None:
        fields.append(("checked every", format_seconds(status.check_every)))
    return fields


def _fields(status: TemplateStatus) -> list[tuple[str, str]]:
    virtual = "-" if status.virtual_size is None else format_size(status.virtual_size)
    fields = [
        ("name", status.name),
        ("path", status.path),
        ("state", status.state),
        ("here", f"{format_size(status.bytes_here)} of {_size(status)}"),
        ("virtual size", virtual),
        ("content", status.content_id),
        ("source", status.source),
        ("pinned", "yes" if status.pinned else "no"),
        ("last used", _when(status.last_used_at)),
        ("added", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.added_at))),
        ("readable early", "yes" if status.readable_early else "no, only when all is here"),
    ]
    if status.unverified:
        fields.append(("unverified", "nothing but its first fetch says what its bytes are"))
    if status.signed:
        fields.append(("signature", _signature_text(status)))
    if status.weak is not None:
        fields.append(("weak", f"only {status.weak} to verify it by, which can be forged"))
    if status.published_path is not None:
        fields.append(("published", status.published_path))
        fields.append(("on primary", ", ".join(status.primaries)))
    fields += _source_fields(status)
    if status.last_error is not None:
        fields.append(("last error", status.last_error))
    if status.retry_in is not None:
        fields.append(("tried again in", format_seconds(status.retry_in)))
    return fields


def _signature_text(status: TemplateStatus) -> str:
    if status.published_path is not None:
        return "good, of the whole file"
    return "of the file; judged when all is here, before anybody reads it"


def _when(moment: float | None) -> str:
    if moment is None:
        return "never"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
