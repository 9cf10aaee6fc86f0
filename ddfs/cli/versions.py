"""Versions of templates: has a source changed, and what then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from ddfs import errors
from ddfs.cli import output
from ddfs.cli.paths import absolute
from ddfs.cli.session import JsonOption, Session, complete_template, session_of
from ddfs.cli.source_options import NoKeyringOption
from ddfs.cli.text import one_line
from ddfs.versions import Verdict

if TYPE_CHECKING:
    from ddfs.control.client import Client
    from ddfs.control.version_messages import SourceCheck, Updated

T = TypeVar("T")

# Requests to the daemon under way. It bounds what it does for them by itself.
AT_ONCE: Final = 32


def check(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]", help="Only these.", autocompletion=complete_template),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask sources whether they have changed. Nothing is downloaded, and nothing changes here.

    The exit code is 0 when all are as they were registered, 6 when there is a newer version
    of one, and 3 when one could not be asked.
    """
    session = session_of(context)
    found: list[SourceCheck] = []
    wanted = families(session, names or [])
    for name, result in each(session.client, wanted, lambda client, name: client.check(name)):
        if isinstance(result, errors.DdfsError):
            raise result
        found.append(result)
        if not as_json:
            note = f": {one_line(result.message)}" if result.message else ""
            print(f"{name}: {result.verdict}{note}", flush=True)
    if as_json:
        output.print_json(found)
    verdicts = {result.verdict for result in found}
    if Verdict.UNREACHABLE.value in verdicts:
        raise typer.Exit(errors.EXIT_SOURCE)
    if Verdict.CHANGED.value in verdicts:
        raise typer.Exit(errors.EXIT_DIFFERENT)


def update(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME [SOURCE]",
            help="A template, and where its new version is if that is elsewhere.",
            autocompletion=complete_template,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All templates.")] = False,
    checksum: Annotated[
        str | None, typer.Option(metavar="ALG:HEX", help="What the new version must match.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Its size once it is unpacked.")
    ] = None,
    keyring: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="OpenPGP keys, one of which has signed the new version."),
    ] = None,
    no_keyring: NoKeyringOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new version of what the source is now; where it has not changed, none.

    The new version has a name of its own, as debian-12@2, and is fetched when it is used.
    The old one stays as it is.
    """
    from ddfs.control.version_messages import UpdateTemplate

    session = session_of(context)
    if keyring is not None and no_keyring:
        raise errors.InvalidValueError("--keyring: not together with --no-keyring")
    given = {
        "--checksum": checksum,
        "--size": size,
        "--keyring": keyring,
        "--no-keyring": no_keyring or None,
    }
    wanted, source = _update_what(names or [], every, [k for k in given if given[k] is not None])
    ring = None if keyring is None else absolute(keyring)
    request = UpdateTemplate(source, checksum, size, ring, no_keyring or None)
    updated: list[Updated] = []
    failures: list[errors.DdfsError] = []
    chosen = families(session, wanted)
    for name, result in each(session.client, chosen, lambda c, name: c.update(name, request)):
        if isinstance(result, errors.DdfsError):
            failures.append(result)
            complain(name, result)
            continue
        updated.append(result)
        if not as_json:
            kind = "a new version" if result.is_new else "unchanged"
            print(f"{name}: {kind}, {result.template.path}", flush=True)
    if as_json:
        output.print_json(updated)
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _update_what(
    names: list[str], every: bool, options: Sequence[str]
) -> tuple[list[str], str | None]:
    """Which templates, and the new source of the only one; *options* are of one template."""
    if every:
        if names or options:
            what = options[0] if options else "a name"
            raise errors.InvalidValueError(f"--all: not together with {what}")
        return [], None
    if not names:
        raise errors.InvalidValueError("name a template, or give --all")
    *rest, last = names
    if len(names) == 2 and ("://" in last or last.startswith(("/", "./", "../"))):
        return rest, absolute(last)
    if options and len(names) > 1:
        raise errors.InvalidValueError(f"{options[0]}: goes with one template, not {len(names)}")
    return names, None


def families(session: Session, names: Sequence[str]) -> list[str]:
    """The names without versions that *names* mean, each once; all of them for none."""
    found = session.client.templates(session.template_names(names))
    return list(dict.fromkeys(status.family for status in found))


def each(
    client: Client, names: Sequence[str], ask: Callable[[Client, str], T]
) -> Iterator[tuple[str, T | errors.DdfsError]]:
    """Ask about each of *names*, some at once; what came of it, in the order of *names*.

    An error about one is its answer; that nobody answers at all is raised.
    """
    if len(names) == 1:
        yield names[0], _asked(client, names[0], ask)
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        waiting = [(name, pool.submit(_asked, client, name, ask)) for name in names]
        for name, future in waiting:
            yield name, future.result()
    finally:
        # Interrupted, what has not begun does not begin.
        pool.shutdown(wait=True, cancel_futures=True)


def _asked(client: Client, name: str, ask: Callable[[Client, str], Any]) -> Any:
    try:
        return ask(client, name)
    except errors.DaemonDownError:
        raise
    except errors.DdfsError as error:
        return error


def complain(name: str, error: errors.DdfsError) -> None:
    """One line about one of several, on standard error."""
    import sys

    print(f"ddfs: {name}: {one_line(str(error))}", file=sys.stderr)
