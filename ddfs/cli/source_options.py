"""The options about a source that ``template add`` and ``fetch`` share."""

from __future__ import annotations

from typing import Annotated

import typer

ChecksumOption = Annotated[
    str | None, typer.Option("--checksum", metavar="ALG:HEX", help="What the file must match.")
]
ChecksumUrlOption = Annotated[
    str | None,
    typer.Option(
        "--checksum-url",
        metavar="URL",
        help="A SHA256SUMS or similar file; may be relative to SOURCE.",
    ),
]
SignatureOption = Annotated[
    str | None,
    typer.Option(
        "--signature",
        metavar="URL",
        help="Of the checksum file, the metalink, or the image.",
    ),
]
KeyringOption = Annotated[
    str | None,
    typer.Option("--keyring", metavar="FILE", help="OpenPGP keys, one of which must have signed."),
]
NoKeyringOption = Annotated[
    bool,
    typer.Option("--no-keyring", help="Do not ask the settings' keys who has signed it."),
]
FileOption = Annotated[
    str | None,
    typer.Option(
        "--file", metavar="NAME", help="Which file of the metalink, checksum file or archive."
    ),
]
UnverifiedOption = Annotated[
    bool,
    typer.Option(
        "--unverified", help="Without any hash: take what comes, and only that from then on."
    ),
]
