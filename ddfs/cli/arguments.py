"""Secrets among the arguments, out of sight of other users.

Everybody on a host can read the arguments of its processes. So what is secret in ours is
overwritten where the kernel shows them, as curl does it. For the moment before that, and for
the program that started us, nothing can be done: files are the better place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_LOGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)@")


def secrets_in(arguments: Sequence[str]) -> Iterator[str]:
    """The values of headers, and logins in addresses."""
    for previous, argument in zip(("", *arguments), arguments, strict=False):
        if previous == "--header" or argument.startswith("--header="):
            yield argument.removeprefix("--header=").partition(":")[2]
        match = _LOGIN.match(argument.rpartition("=")[2] if argument[:2] == "--" else argument)
        if match is not None:
            yield match[1]


def hide(arguments: Sequence[str]) -> None:
    """Overwrite the secrets in *arguments* for ``ps`` and ``/proc``; if that fails, go on."""
    secrets = [secret.encode(errors="surrogateescape") for secret in secrets_in(arguments)]
    if not any(secrets):
        return
    try:
        with open("/proc/self/stat", "rb") as file:
            # proc_pid_stat(5): arg_start and arg_end are fields 48 and 49; the name of the
            # program, field 2, may have anything in it but is followed by the last ")".
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            shown = memory.read(end - start)
            for secret in filter(None, secrets):
                shown = shown.replace(secret, b"*" * len(secret))
            memory.seek(start)
            memory.write(shown)
    except (OSError, ValueError, IndexError):
        return
