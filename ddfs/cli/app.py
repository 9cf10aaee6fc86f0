"""All commands, put together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ddfs import __version__, config
from ddfs.cli import (
    autostart,
    ca,
    deploy,
    disks,
    domains,
    gate,
    gc,
    limits,
    metalink,
    pool,
    templates,
)
from ddfs.cli.access_options import with_access
from ddfs.cli.fetch_request import FetchRequest
from ddfs.cli.session import JsonOption, Session, session_of
from ddfs.cli.source_options import (
    ChecksumOption,
    ChecksumUrlOption,
    FileOption,
    KeyringOption,
    NoKeyringOption,
    SignatureOption,
    UnverifiedOption,
)

# Rich's help would be drawn in boxes, and tracebacks with the values of all variables.
app = typer.Typer(
    name="ddfs",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="VM templates on a KVM host before a byte of them is there.",
    epilog="Settings come from --config FILE, else $DDFS_CONFIG, else /etc/ddfs/ddfs.toml.",
)
app.add_typer(templates.group, name="template")
app.add_typer(pool.group, name="pool")
app.add_typer(metalink.group, name="metalink")
app.add_typer(autostart.group, name="autostart")
app.add_typer(ca.group, name="ca")
templates.register(app)
domains.register(app)
disks.register(app)
deploy.register(app)
gate.register(app)
limits.register(app)
gc.register(app)


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="The settings file.")] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What comes before every command."""
    if version:
        print(f"ddfs {__version__}")
        raise typer.Exit
    context.obj = Session(config)


@app.command(epilog="Example: ddfs serve --config /etc/ddfs/ddfs.toml")
def serve(context: typer.Context) -> None:
    """Run the daemon: the mount, the API and the fetches, until it is told to end."""
    from ddfs import daemon

    daemon.run(session_of(context).settings)


@app.command(epilog="Example: ddfs fetch https://example.org/debian-12.qcow2.meta4 -o /tmp/")
@with_access
def fetch(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A metalink's address or path, or an image's address."
        ),
    ],
    access: Mapping[str, Any],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to; a directory will do."),
    ] = None,
    checksum: ChecksumOption = None,
    checksum_url: ChecksumUrlOption = None,
    signature: SignatureOption = None,
    keyring: KeyringOption = None,
    no_keyring: NoKeyringOption = False,
    file: FileOption = None,
    unverified: UnverifiedOption = False,
    limit_rate: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Bytes per second, as 10MiB; 0 for no limit."),
    ] = None,
    seeds: Annotated[
        list[str] | None,
        typer.Option(
            "--seed", metavar="FILE", help="A file that may have parts of it. Repeatable."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download one file, from all its mirrors at once and verified. Needs no daemon.

    An interrupted download goes on when the same command is run again.
    """
    from ddfs.cli import fetch as implementation

    option = session_of(context).config_option
    implementation.fetch(
        FetchRequest(
            source,
            output=output,
            checksum=checksum,
            checksum_url=checksum_url,
            signature=signature,
            keyring=keyring,
            no_keyring=no_keyring,
            file=file,
            unverified=unverified,
            as_json=as_json,
            config=option,
            limit_rate=limit_rate,
            seeds=tuple(seeds or ()),
            **access,
        )
    )


@app.command(epilog="Example: ddfs doctor")
def doctor(
    context: typer.Context,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Mend what disk and catalogue disagree about; define the pool."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look whether this host is set up right, and say what to do about it.

    The exit code is 4 if something has to be mended.
    """
    from ddfs.cli import doctor as implementation

    implementation.doctor(session_of(context), as_json, fix)


config_group = typer.Typer(help="The settings.", rich_markup_mode=None)
app.add_typer(config_group, name="config")


@config_group.command("show", epilog="Example: ddfs config show --json")
def show_config(context: typer.Context, as_json: JsonOption = False) -> None:
    """Print the settings in force, defaults included."""
    from ddfs.cli import output

    session = session_of(context)
    pairs = list(_flat("", session.settings))
    if as_json:
        output.print_json(session.settings)
        return
    output.print_fields([("file", str(config.settings_path(session.config_option))), *pairs])


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    """Each setting by its key in the file, and its value as it may stand there."""
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, config.Amount):
        fields = value.__dataclass_fields__
        # What is many here has the name of one there.
        value = {"host" if name == "hosts" else name: getattr(value, name) for name in fields}
    if isinstance(value, bool | tuple):
        return [(prefix, json.dumps(value))]
    if not isinstance(value, dict):
        return [] if value is None else [(prefix, str(value))]
    pairs: list[tuple[str, str]] = []
    for name, inner in value.items():
        pairs += _flat(f"{prefix}.{name}" if prefix else name, inner)
    return pairs
