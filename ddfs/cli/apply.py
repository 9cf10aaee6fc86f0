"""The catalogue made like files, and files made like the catalogue."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddfs import errors
from ddfs.cli import output
from ddfs.cli.session import JsonOption, complete_template, session_of
from ddfs.cli.text import one_line
from ddfs.cli.versions import complain, each, families
from ddfs.declaration import Declaration

if TYPE_CHECKING:
    from ddfs.apply.difference import Step
    from ddfs.apply.files import File
    from ddfs.control.client import Client


def apply(
    context: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(metavar="FILE", help="TOML files, or directories of them.")
    ],
    only_diff: Annotated[
        bool, typer.Option("--diff", help="Only show what is different; change nothing.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what no file declares and nothing uses.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the catalogue like files: register what is new, change what is declared otherwise.

    All mistakes in the files are shown first, and then nothing is changed. One source that
    fails does not stop the others; the exit code is then that of the first failure. With
    --diff it is 6 if there is a difference, else 0.
    """
    from ddfs.apply.difference import difference, shown

    session = session_of(context)
    wanted = _wanted(paths)
    steps = difference(wanted, _there(session.client), prune=prune)
    if only_diff:
        if as_json:
            output.print_json([_as_json(step) for step in steps])
        else:
            for line in (line for step in steps for line in shown(step)):
                print(one_line(line) if not line.startswith(" ") else f"  {one_line(line)}")
        if steps:
            raise typer.Exit(errors.EXIT_DIFFERENT)
        return
    failures = _carry_out(session.client, steps, as_json)
    if not as_json:
        print(f"{len(steps) - len(failures)} changed, {len(failures)} failed")
    if failures:
        raise typer.Exit(failures[0].exit_code)


def export(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]", help="Only these.", autocompletion=complete_template),
    ] = None,
    with_secrets: Annotated[
        bool, typer.Option("--with-secrets", help="Headers, too; anybody may read them then.")
    ] = False,
) -> None:
    """Write what is declared to standard output, as a file for `ddfs template apply`."""
    from ddfs.apply.export import exported

    session = session_of(context)
    there = _there(session.client)
    if names:
        chosen = families(session, names)
        there = {name: there[name] for name in chosen if name in there}
    print(exported(there, with_secrets=with_secrets), end="")


def _wanted(paths: Sequence[str]) -> dict[str, Declaration]:
    """What the files declare; prints every mistake and raises."""
    from ddfs.apply.files import read

    declared, mistakes = read(_files(paths))
    for mistake in mistakes:
        print(f"ddfs: {one_line(str(mistake))}", file=sys.stderr)
    if mistakes:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise errors.InvalidValueError(f"{count} in the files; nothing was changed")
    return declared


def _files(paths: Sequence[str]) -> Iterator[File]:
    from ddfs.apply.files import MAX_FILE_BYTES, File

    seen: set[str] = set()
    for shown in _toml_files(paths):
        real = os.path.realpath(shown)
        if real in seen:
            continue
        seen.add(real)
        try:
            with open(shown, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise errors.InvalidValueError(f"{shown}: {error.strerror or error}") from None
        if len(data) > MAX_FILE_BYTES:
            raise errors.InvalidValueError(
                f"{shown}: larger than the {MAX_FILE_BYTES} bytes that it may have; split it"
            )
        yield File(os.path.abspath(shown), shown, data)


def _toml_files(paths: Sequence[str]) -> Iterator[str]:
    """The files themselves; of a directory those that end in .toml, in order of name."""
    for path in paths:
        if os.path.isdir(path):
            found = sorted(Path(path).glob("*.toml"))
            if not found:
                raise errors.InvalidValueError(f"{path}: no file ends in .toml there")
            yield from map(str, found)
        else:
            yield path


def _there(client: Client) -> dict[str, Declaration]:
    found = {}
    for message in client.declared().templates:
        plain = dataclasses.asdict(message)
        name = plain.pop("name")
        found[name] = Declaration.from_plain(plain)
    return found


def _carry_out(client: Client, steps: Sequence[Step], as_json: bool) -> list[errors.DdfsError]:
    """The steps, some at once but removals last; what failed."""
    from ddfs.apply.difference import Kind

    by_name = {step.name: step for step in steps}
    failures: list[errors.DdfsError] = []
    results: list[dict[str, Any]] = []
    for is_removal in (False, True):
        names = [s.name for s in steps if (s.kind is Kind.REMOVE) is is_removal]
        for name, result in each(client, names, lambda c, name: _do(c, by_name[name])):
            failed = isinstance(result, errors.DdfsError)
            if isinstance(result, errors.DdfsError):
                failures.append(result)
                complain(name, result)
            kind = by_name[name].kind
            error = str(result) if failed else None
            results.append({"name": name, "step": kind.name.lower(), "error": error})
            if not as_json and not failed:
                print(f"{kind.value} {result}", flush=True)
    if as_json:
        output.print_json(results)
    return failures


def _do(client: Client, step: Step) -> str:
    """One step; what to say about it."""
    from ddfs.control.messages import AddTemplate

    if step.declaration is None:
        removed = client.remove_versions(step.name, purge=False)
        if removed.kept:
            raise errors.TemplateInUseError("; ".join(removed.kept))
        return step.name
    plain = step.declaration.as_plain()
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in plain.items()}
    updated = client.declare(AddTemplate(name=step.name, **plain))
    return updated.template.name


def _as_json(step: Step) -> dict[str, Any]:
    changes = [dataclasses.asdict(change) for change in step.changes]
    return {"name": step.name, "step": step.kind.name.lower(), "changes": changes}
