"""A manifest to a version 4 document (RFC 5854), and a local file to a manifest."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from ddfs import errors
from ddfs.metalink import limits, mirrors, names
from ddfs.metalink.v4 import NAMESPACE
from ddfs.model import (
    LOWEST_PRIORITY,
    OWN_PIECE_LENGTH,
    OWN_PIECE_LENGTH_SMALL,
    SMALL_FILE,
    Digest,
    HashAlgorithm,
    Manifest,
    MiB,
    Mirror,
    PieceMap,
)

_READ_LENGTH: Final = 1 * MiB

# `<hash>` + 64 digits + `</hash>` + line end; with room for the rest of the document.
_BYTES_PER_PIECE: Final = 78
_MAX_PIECES: Final = (limits.MAX_DOCUMENT_BYTES - 256 * 1024) // _BYTES_PER_PIECE


def make(manifest: Manifest, *, origin: str | None = None) -> str:
    """*manifest* as a document; the same manifest gives the same text, dates are left out.

    ``read.parse`` gives the manifest back, but for its notes and ``max_connections``
    (version 4 has no word for them), when its mirrors stand in order of priority. *origin*
    is where the document will be published. Raises :class:`errors.InvalidValueError` for
    addresses, :class:`errors.DocumentError` for a name that no document may have.
    """
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<metalink xmlns="{NAMESPACE}">',
        "  <generator>ddfs</generator>",
    ]
    if origin is not None:
        lines.append(f"  <origin>{escape(mirrors.to_uri(origin))}</origin>")
    lines.append(f"  <file name={quoteattr(names.validate_file_name(manifest.name))}>")
    # A size that only mirrors said is not for others to rely on.
    if manifest.size is not None and manifest.size_is_stated:
        lines.append(f"    <size>{manifest.size}</size>")
    lines += [
        f'    <hash type="{digest.algorithm.value}">{digest.hexdigest}</hash>'
        for digest in manifest.digests
    ]
    if manifest.pieces is not None and len(manifest.pieces):
        lines += _pieces(manifest.pieces)
    if manifest.signature is not None:
        opening = '<signature mediatype="application/pgp-signature">'
        lines.append(f"    {opening}{escape(manifest.signature)}</signature>")
    lines += [_url(mirror) for mirror in manifest.mirrors]
    lines += ["  </file>", "</metalink>", ""]
    return "\n".join(lines)


def _pieces(pieces: PieceMap) -> Iterable[str]:
    yield f'    <pieces type="{pieces.algorithm.value}" length="{pieces.piece_length}">'
    # Not indented: there may be 400,000 of them, and the reader's cap is in bytes.
    for digest in pieces:
        yield f"<hash>{digest.hex()}</hash>"
    yield "    </pieces>"


def _url(mirror: Mirror) -> str:
    attributes = f' location="{mirror.location}"' if mirror.location else ""
    if mirror.priority != LOWEST_PRIORITY:
        attributes += f' priority="{mirror.priority}"'
    return f"    <url{attributes}>{escape(mirrors.to_uri(mirror.url))}</url>"


def _usable(url: str, rank: int) -> str:
    try:
        return mirrors.to_uri(url)
    except errors.InvalidValueError as error:
        # It may have a login in it, and is not repeated.
        raise errors.InvalidValueError(f"mirror number {rank}: {error}") from None


def describe_file(
    path: Path, urls: Sequence[str], piece_length: int | None = None, *, name: str | None = None
) -> Manifest:
    """The manifest of the file at *path*, which *urls* serve, first the best.

    Reads it once, for SHA-256 of the whole and of pieces of *piece_length* bytes (None: as
    long as the engine's own). *name* is the path's last part unless given. Blocks for as
    long as that takes: call it in a thread. Raises :class:`errors.RequestError` for the
    arguments, :class:`errors.DocumentError` for a name that no document may have,
    :class:`errors.StorageError` when reading fails or the file changes meanwhile.
    """
    if not urls:
        raise errors.InvalidValueError("a metalink needs at least one address of the file")
    listed = [Mirror(_usable(url, rank), rank) for rank, url in enumerate(urls, start=1)]
    shown_name = names.validate_file_name(path.name if name is None else name)
    try:
        with open(path, "rb", buffering=0, opener=_open_regular) as file:
            before = os.fstat(file.fileno())
            length = _piece_length(before.st_size, piece_length)
            hashed = _hash(file, length)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise errors.StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if (hashed.size, after.st_size, after.st_mtime_ns) != (
        before.st_size,
        before.st_size,
        before.st_mtime_ns,
    ):
        raise errors.StorageError(f"{path}: it changed while it was read; try again")
    return Manifest(
        shown_name,
        hashed.size,
        (Digest(HashAlgorithm.SHA256, hashed.whole),),
        PieceMap(HashAlgorithm.SHA256, length, hashed.pieces) if hashed.size else None,
        mirrors.in_order(listed, None),
    )


def _open_regular(path: str, flags: int) -> int:
    """Opens without waiting for a writer of a FIFO, and refuses what is no regular file."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise errors.RequestError(f"{path}: cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise errors.RequestError(f"{path}: not a regular file")
    return descriptor


def _piece_length(size: int, wanted: int | None) -> int:
    if wanted is None:
        own = OWN_PIECE_LENGTH_SMALL if size <= SMALL_FILE else OWN_PIECE_LENGTH
        # Doubled until the document stays readable: above 1.6 TB.
        while size > own * _MAX_PIECES:
            own *= 2
        return own
    if wanted <= 0 or size > wanted * _MAX_PIECES:
        least = max(1, -(-size // _MAX_PIECES))
        raise errors.InvalidValueError(
            f"pieces of {wanted} bytes: for this file they must have {least} at least"
        )
    return wanted


class _Hashed(NamedTuple):
    """A file's size, SHA-256, and the SHA-256 of its pieces one behind the other."""

    size: int
    whole: str
    pieces: bytes


def _hash(file: io.RawIOBase, piece_length: int) -> _Hashed:
    whole = hashlib.sha256()
    piece = hashlib.sha256()
    digests = bytearray()
    size = 0
    buffer = memoryview(bytearray(_READ_LENGTH))
    while True:
        room = piece_length - size % piece_length
        count = file.readinto(buffer[: min(room, _READ_LENGTH)])
        if not count:
            break
        whole.update(buffer[:count])
        piece.update(buffer[:count])
        size += count
        if size % piece_length == 0:
            digests += piece.digest()
            piece = hashlib.sha256()
    if size % piece_length:
        digests += piece.digest()
    return _Hashed(size, whole.hexdigest(), bytes(digests))
