"""Is what stands in primary storage still right? And repairing it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ddfs import errors
from ddfs.cli import output
from ddfs.cli.session import JsonOption, Session, complete_template, session_of
from ddfs.cli.text import format_size, named

if TYPE_CHECKING:
    from ddfs.control.version_messages import Verification

LOOK_SECONDS: Final = 0.2

_RUNNING: Final = ("verifying", "repairing")

# A person reads the first few; --json has all.
_SHOWN_RANGES: Final = 10


def verify(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Templates.", autocompletion=complete_template),
    ],
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch what is damaged, and put it in its place.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Hash what is in primary storage, and name the bytes that are damaged.

    The exit code is 0 when all is sound or repaired, and 4 when something is damaged.
    """
    session = session_of(context)
    ended = [_verified(session, name, repair) for name in session.template_names(names)]
    if as_json:
        output.print_json(ended)
    else:
        for one in ended:
            print(describe(one))
    for one in ended:
        if one.error is not None:
            raise _error(one)
    bad = [one.name for one in ended if one.stage == "damaged"]
    if bad:
        raise errors.StorageError(
            f"{', '.join(bad)}: damaged; mend it with: ddfs template verify {bad[0]} --repair"
        )
    cancelled = [one.name for one in ended if one.stage == "cancelled"]
    if cancelled:
        raise errors.CancelledFetchError(f"{', '.join(cancelled)}: it was cancelled")


def describe(one: Verification) -> str:
    """One line on how it ended."""
    text = f"{one.name}: {one.stage}, {format_size(one.size)}, {one.path}"
    if not one.damaged:
        return text
    if not one.can_tell:
        return f"{text}; which bytes are damaged cannot be told"
    shown = ", ".join(f"{each.start}-{each.end - 1}" for each in one.damaged[:_SHOWN_RANGES])
    more = ", and more" if len(one.damaged) > _SHOWN_RANGES else ""
    verb = "were" if one.stage == "repaired" else "are"
    return f"{text}; bytes {shown}{more} {verb} damaged"


def _verified(session: Session, name: str, repair: bool) -> Verification:
    """The verification when it has ended. Interrupted, it is ended there, too."""
    client = session.client
    looked = client.verify(name, repair=repair)
    try:
        while looked.stage in _RUNNING:
            time.sleep(LOOK_SECONDS)
            looked = client.verification(name)
            if sys.stderr.isatty():
                percent = 100 * looked.bytes_done // looked.size if looked.size else 100
                print(f"\r{looked.name}: {looked.stage}, {percent} % ", end="", file=sys.stderr)
    except KeyboardInterrupt:
        client.cancel_verification(name)
        raise
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return looked


def _error(one: Verification) -> errors.DdfsError:
    from ddfs.control.messages import Problem
    from ddfs.control.problems import error_of

    text = named(one.name, one.error or "")
    return error_of(Problem(one.error_kind or errors.StorageError.kind(), text))
