"""Metalink documents: made and shown, without a daemon."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddfs import errors
from ddfs.cli import output
from ddfs.cli.session import JsonOption, session_of
from ddfs.cli.text import format_size

if TYPE_CHECKING:
    from ddfs.model import Manifest

group = typer.Typer(help="Make and show metalink documents.", rich_markup_mode=None)


@group.command(epilog="Example: ddfs metalink make a.qcow2 --url https://example.org/a.qcow2")
def make(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file that the mirrors serve.")],
    url: Annotated[list[str], typer.Option(metavar="URL", help="A mirror; the first is the best.")],
    piece_length: Annotated[
        int | None, typer.Option(metavar="BYTES", help="How long its pieces are.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to; else standard output."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version 4 metalink for a file, with SHA-256 of the whole and of its pieces.

    FILE is read once. An output file that exists is replaced.
    """
    from ddfs.metalink import write

    if target is not None and os.path.isdir(target):
        raise errors.InvalidValueError(f"{target}: is a directory; name a file in it with -o")
    with contextlib.suppress(OSError):
        if target is not None and target.samefile(file):
            raise errors.InvalidValueError(f"{target}: is the file itself; name another with -o")
    manifest = write.describe_file(file, url, piece_length)
    document = write.make(manifest)
    if target is not None:
        _write(target, document)
    if as_json:
        output.print_json(_described(manifest))
    elif target is None:
        sys.stdout.write(document)


@group.command(epilog="Example: ddfs metalink show https://example.org/a.qcow2.meta4 --json")
def show(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A metalink's address or path.")],
    checksum: Annotated[
        str | None, typer.Option(metavar="ALG:HEX", help="What the whole file must match.")
    ] = None,
    file: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which file of the metalink.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a source says: size, hashes, pieces, and mirrors in the order of use."""
    import trio

    from ddfs.cli.resolving import resolve_once
    from ddfs.declaration import Declaration

    settings = session_of(context).settings
    declared = {"source": source, "checksum": checksum, "file": file}
    manifest = trio.run(resolve_once, Declaration.from_plain(declared), settings)
    if as_json:
        output.print_json(_described(manifest))
        return
    _print_manifest(manifest)


def _described(manifest: Manifest) -> dict[str, object]:
    """The manifest for programs. Piece hashes, up to megabytes of them, are left out."""
    pieces = manifest.pieces
    return {
        "name": manifest.name,
        "size": manifest.size,
        "size_is_stated": manifest.size_is_stated,
        "content_id": manifest.content_id,
        "digests": [str(digest) for digest in manifest.digests],
        "pieces": None
        if pieces is None
        else {
            "algorithm": pieces.algorithm.value,
            "piece_length": pieces.piece_length,
            "count": len(pieces),
        },
        "mirrors": list(manifest.mirrors),
        "signature": manifest.signature,
        "notes": list(manifest.notes),
    }


def _print_manifest(manifest: Manifest) -> None:
    fields = [("name", manifest.name)]
    if manifest.size is not None:
        by_mirrors = "" if manifest.size_is_stated else ", as its mirrors say"
        fields.append(("size", f"{manifest.size} ({format_size(manifest.size)}){by_mirrors}"))
    fields += [("hash", str(digest)) for digest in manifest.digests]
    if manifest.pieces is not None:
        length = format_size(manifest.pieces.piece_length)
        algorithm = manifest.pieces.algorithm.value
        fields.append(("pieces", f"{len(manifest.pieces)} of {length}, {algorithm}"))
    if manifest.signature is not None:
        fields.append(("signature", "OpenPGP, of the file; judged when all of it is here"))
    fields += [("note", note) for note in manifest.notes]
    output.print_fields(fields)
    print()
    output.print_table(
        ("PRIORITY", "LOCATION", "MIRROR"),
        ((str(mirror.priority), mirror.location or "-", mirror.url) for mirror in manifest.mirrors),
    )


def _write(path: Path, document: str) -> None:
    """Whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(document, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        reason = error.strerror or str(error)
        raise errors.StorageError(f"{path}: cannot be written: {reason}") from error
