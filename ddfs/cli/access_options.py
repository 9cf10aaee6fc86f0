"""The options of how a source is reached, which several commands have."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import typer

from ddfs.declaration import PATH_KEYS

_OPTIONS: Final[Mapping[str, Any]] = {
    "headers": Annotated[
        list[str] | None,
        typer.Option(
            "--header", metavar="'NAME: VALUE'", help="Sent to the source's server; repeatable."
        ),
    ],
    "headers_file": Annotated[
        str | None, typer.Option(metavar="FILE", help="Has such headers, one a line.")
    ],
    "netrc_file": Annotated[
        str | None, typer.Option(metavar="FILE", help="Has logins in netrc's form.")
    ],
    "token_file": Annotated[str | None, typer.Option(metavar="FILE", help="Has a bearer token.")],
    "client_cert": Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM certificate that this host shows.")
    ],
    "client_key": Annotated[
        str | None, typer.Option(metavar="FILE", help="Its key, if not in the same file.")
    ],
    "ca_file": Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM authorities to trust for it, too.")
    ],
}


def with_access(command: Callable[..., None]) -> Callable[..., None]:
    """*command*, which takes ``access``, with these options in its place.

    It gets what was given, by the keys of a declaration's plain form.
    """
    own = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in own.parameters.values() if parameter.name != "access"]
    added = [
        inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation
        )
        for name, annotation in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        access = {name: given.pop(name) for name in _OPTIONS}
        access["headers"] = tuple(access["headers"] or ())
        command(**given, access={key: value for key, value in access.items() if value})

    run.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    return run


def for_daemon(access: Mapping[str, Any]) -> dict[str, Any]:
    """*access* with paths that mean the same to the daemon, which runs in another directory."""
    return {
        key: os.path.abspath(value) if key in PATH_KEYS else value for key, value in access.items()
    }


def warn_of_exposed(access: Mapping[str, Any]) -> None:
    """Say which of these files with secrets everybody on this host can read."""
    from ddfs.declaration import Access
    from ddfs.fetch.access import exposed, secret_files

    for path in secret_files(Access(**access)):
        warning = exposed(path)
        if warning is not None:
            print(f"ddfs: warning: {warning}", file=sys.stderr)
