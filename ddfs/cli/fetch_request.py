"""What ``ddfs fetch`` is asked for, and a short way to it.

Importing Typer and building all commands takes 80 ms, a large part of the 0.2 s that
``ddfs fetch`` has until its first request. The common forms are therefore read here;
whatever else is left to Typer, help and mistakes included. A test compares the options.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ddfs.declaration import Declaration

# The options of `ddfs fetch` that take a value, and those that do not, by their field.
VALUES: Final = {
    "-o": "output",
    "--output": "output",
    "--checksum": "checksum",
    "--checksum-url": "checksum_url",
    "--signature": "signature",
    "--keyring": "keyring",
    "--file": "file",
    "--headers-file": "headers_file",
    "--netrc-file": "netrc_file",
    "--token-file": "token_file",
    "--client-cert": "client_cert",
    "--client-key": "client_key",
    "--ca-file": "ca_file",
    "--limit-rate": "limit_rate",
    "--config": "config",
}
# Those that may be repeated.
REPEATED: Final = {"--seed": "seeds", "--header": "headers"}
FLAGS: Final = {
    "--json": "as_json",
    "--unverified": "unverified",
    "--no-keyring": "no_keyring",
}


@dataclass(frozen=True)
class FetchRequest:
    """The arguments of ``ddfs fetch``, as they were written."""

    source: str
    output: str | None = None
    checksum: str | None = None
    file: str | None = None
    as_json: bool = False
    config: str | None = None
    limit_rate: str | None = None
    seeds: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    headers_file: str | None = None
    netrc_file: str | None = None
    token_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    ca_file: str | None = None
    checksum_url: str | None = None
    signature: str | None = None
    keyring: str | None = None
    unverified: bool = False
    no_keyring: bool = False

    def declaration(self) -> Declaration:
        """What it says about the source; :class:`~ddfs.errors.InvalidValueError`."""
        # Not before the first requests are on their way.
        from ddfs.declaration import PATH_KEYS, PLAIN_KEYS, Declaration

        given: dict[str, Any] = {key: getattr(self, key, None) for key in PLAIN_KEYS}
        for key in PATH_KEYS:
            if given[key]:
                given[key] = os.path.abspath(given[key])
        return Declaration.from_plain(given)


def parse(arguments: Sequence[str]) -> FetchRequest | None:
    """The request in *arguments*; None if Typer has to look at them.

    ``--config`` may stand before the command, all else behind it.
    """
    given: dict[str, Any] = {}
    words: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            words.append(argument)
        elif argument in FLAGS:
            given[FLAGS[argument]] = True
        elif name in VALUES and equals and name.startswith("--"):
            given[VALUES[name]] = value
        elif name in REPEATED and equals:
            given[REPEATED[name]] = (*given.get(REPEATED[name], ()), value)
        elif argument in VALUES or argument in REPEATED:
            following = next(remaining, "-")
            if following.startswith("-"):
                return None
            if argument in VALUES:
                given[VALUES[argument]] = following
            else:
                given[REPEATED[argument]] = (*given.get(REPEATED[argument], ()), following)
        else:
            return None
        if not words and set(given) - {"config"}:
            return None
    if len(words) != 2 or words[0] != "fetch":
        return None
    return FetchRequest(words[1], **given)
