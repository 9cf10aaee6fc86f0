"""The entry point: dispatch, and what people see when something goes wrong.

User mistakes and everything else in :mod:`ddfs.errors` are one line on standard error and
an exit code; with ``--json`` there is an object on standard output too. Our own bugs are a
traceback and exit code 1.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

from ddfs import errors
from ddfs.cli.text import one_line

# 128 + SIGINT, and 128 + SIGPIPE, as a shell reports programs that these signals end.
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141


def main() -> NoReturn:
    """``ddfs``, with the arguments of the process."""
    # Python leaves None where a descriptor was closed, as in `ddfs status >&-`.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (until the end)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 (until the end)
    # Imports make no garbage worth looking for, and looking for it takes a sixth of their time.
    gc.disable()
    if any("@" in argument or argument.startswith("--header") for argument in sys.argv):
        from ddfs.cli import arguments

        arguments.hide(sys.argv[1:])
    code = run(sys.argv[1:])
    if "ddfs.cli.fetch" in sys.modules:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End a fetch without taking the interpreter apart, which takes longer than it seems.

    All files are closed or durable by now, and no thread writes any more.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; lets through nothing but our own bugs."""
    try:
        code = _dispatch(hoist_config(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _leave_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if not _is_full_output(error):
            raise
        return _complain_of_output()
    except errors.DdfsError as error:
        return _complain(error, arguments)
    except BaseExceptionGroup as group:
        # Whatever went wrong in one task of a nursery is what went wrong.
        leaves = list(_leaves(group))
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            return EXIT_INTERRUPTED
        # As above: events are printed in the middle of a fetch.
        if any(map(_is_full_output, leaves)):
            return _complain_of_output()
        if any(isinstance(leaf, BrokenPipeError) for leaf in leaves):
            _leave_output()
            return EXIT_BROKEN_PIPE
        foreseen = [leaf for leaf in leaves if isinstance(leaf, errors.DdfsError)]
        if len(foreseen) < len(leaves):
            raise
        return _complain(foreseen[0], arguments)
    return code


def hoist_config(arguments: Sequence[str]) -> list[str]:
    """*arguments* with ``--config FILE`` first, wherever it stood.

    It belongs to ``ddfs`` and not to its commands, and people write it behind them.
    """
    hoisted: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
        elif argument == "--config":
            hoisted += [argument, *(value for value in [next(remaining, None)] if value)]
        elif argument.startswith("--config="):
            hoisted.append(argument)
        else:
            rest.append(argument)
    return hoisted + rest


def _dispatch(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        from ddfs import __version__

        print(f"ddfs {__version__}")
        return 0
    if "_DDFS_COMPLETE" not in os.environ:
        from ddfs.cli import fetch_request

        request = fetch_request.parse(arguments)
        if request is not None:
            from ddfs.cli import headstart

            begun = headstart.begin(request)
            from ddfs.cli import fetch

            _collect_garbage()
            fetch.fetch(request, begun)
            return 0
    return _run_typer(arguments)


def _collect_garbage() -> None:
    """From now on; what is imported stays and need not be looked at."""
    gc.freeze()
    gc.enable()


def _run_typer(arguments: list[str]) -> int:
    import typer

    from ddfs.cli.app import app

    _collect_garbage()
    try:
        # Not standalone: Typer would print its own errors, over several lines.
        code = app(arguments or ["--help"], prog_name="ddfs", standalone_mode=False)
    except typer.Abort:
        return EXIT_INTERRUPTED
    except SystemExit as end:
        # Typer turns a broken pipe into 1, which is ours for tracebacks.
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None
        raise
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "ddfs"
        text = error.format_message().rstrip(". ")
        raise errors.InvalidValueError(f"{text}; see: {command} --help") from None
    return code if isinstance(code, int) else 0


def _is_full_output(error: BaseException) -> bool:
    # Without a file name it is standard output: every other place translates its errors.
    return isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None


def _complain_of_output() -> int:
    _leave_output()
    return _complain(errors.StorageFullError("standard output: no room for more"), ())


def _complain(error: errors.DdfsError, arguments: Sequence[str]) -> int:
    print(f"ddfs: {one_line(str(error))}", file=sys.stderr)
    if "--json" in arguments:
        import json

        event = {"event": "error", "kind": error.kind(), "message": str(error)}
        try:
            print(json.dumps(event), flush=True)
        except OSError:
            _leave_output()
    return error.exit_code


def _leave_output() -> None:
    # Python flushes once more at its end, and would complain then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
