"""What the hook would say about a domain, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from ddfs import errors
from ddfs.cli import output
from ddfs.cli.session import JsonOption, session_of
from ddfs.cli.text import format_seconds, one_line
from ddfs.control.action_messages import ExplainGate, GateFileReport, GateReport

# As the hook reads, and libvirt itself refuses more from its clients.
_MAX_XML_BYTES: Final = 16 * 1024 * 1024

# The hook's own exit codes.
_ALLOWED: Final = 0
_REFUSED: Final = 1


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog="Example: ddfs gate --domain vm1")(gate)


def gate(
    context: typer.Context,
    domain: Annotated[str | None, typer.Option(metavar="NAME", help="A domain of libvirt.")] = None,
    xml: Annotated[
        str | None, typer.Option(metavar="FILE", help="A domain's XML; - is standard input.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain what the hook would say about a domain now, file by file.

    Nothing is fetched or started. The exit code is the hook's: 0 the domain may start, 1 not.
    """
    if (domain is None) == (xml is None):
        raise errors.InvalidValueError("give either --domain or --xml")
    question = ExplainGate(domain) if xml is None else ExplainGate(xml=_read(xml))
    report = session_of(context).client.explain_gate(question)
    if as_json:
        output.print_json(report)
    else:
        if report.files:
            rows = [_row(file) for file in report.files]
            output.print_table(("DISK", "ROLE", "FILE", "STATE"), rows)
        for problem in report.problems:
            print(f"libvirt will refuse it: {one_line(problem)}")
        for file in report.files:
            if file.problem is not None:
                print(f"{file.target}: {one_line(file.problem)}")
        print(one_line(f"{report.domain} {_verdict(report)}"))
    raise typer.Exit(_ALLOWED if report.allowed else _REFUSED)


def _verdict(report: GateReport) -> str:
    if not report.allowed:
        return f"may not start: {report.message}"
    return "may start as far as the hook goes; but see above" if report.problems else "may start"


def _row(file: GateFileReport) -> tuple[str, str, str, str]:
    state = file.state
    if file.percent is not None and file.percent < 100:
        state += f", {file.percent} % here"
    if file.seconds_left is not None:
        state += f", about {format_seconds(file.seconds_left)} left"
    if file.optional:
        state += ", optional"
    if file.writable and file.template is not None:
        state += ", a template that would be written to"
    return file.target, file.role, file.path, state


def _read(path: str) -> str:
    try:
        if path == "-":
            data = sys.stdin.buffer.read(_MAX_XML_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(_MAX_XML_BYTES + 1)
    except OSError as error:
        raise errors.InvalidValueError(f"{path}: {error.strerror}") from error
    if len(data) > _MAX_XML_BYTES:
        raise errors.InvalidValueError(f"{path}: larger than any domain's XML")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise errors.InvalidValueError(f"{path}: no XML in UTF-8") from error
