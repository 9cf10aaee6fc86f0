"""An address to a manifest, and the head of the image: the requests that registering needs.

At most: the document, the sizes from two mirrors where the document has none, and one range
for the head. A mirror that fails is followed by the next.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import stat
from collections import deque
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import trio

from ddfs import errors
from ddfs.metalink import limits, mirrors, names, read
from ddfs.model import (
    HEAD_LENGTH,
    MAX_HEAD_PIECE_LENGTH,
    MAX_SIZE,
    ByteRange,
    Digest,
    Grid,
    KiB,
    Manifest,
    Mirror,
)

METALINK_SUFFIXES: Final = frozenset({".meta4", ".metalink"})

# Addresses that end so are not asked what they are.
IMAGE_SUFFIXES: Final = frozenset(
    {
        *(".qcow2", ".qcow", ".img", ".raw", ".iso", ".vmdk", ".vhd", ".vhdx", ".vdi", ".bin"),
        *(".gz", ".xz", ".bz2", ".zst", ".zip", ".tar", ".tgz"),
    }
)

_METALINK_TYPES: Final = frozenset({"application/metalink4+xml", "application/metalink+xml"})

# How many mirrors are asked for the size until two agree: a dead one costs a time-out each.
_MAX_MIRRORS_ASKED: Final = 8

# A mirror that has not sent a range of the head after this long, and the time that the range
# takes on a slow line, is passed over for the next one. Without it, three mirrors that accept
# connections and say nothing take all the time that registering has.
_PATIENCE_SECONDS: Final = 4.0
_SLOW_BYTES_PER_SECOND: Final = 256 * KiB

# A document may warn about each of 10,000 files; a person reads the first few.
_MAX_WARNINGS_KEPT: Final = 20

# Parsing 32 MiB takes 1.5 s and 80 MiB, hashing 8 MiB some 20 ms: in threads, few at once.
_PARSING: Final = trio.CapacityLimiter(1)
_HASHING: Final = trio.CapacityLimiter(1)
_READING: Final = trio.CapacityLimiter(1)


class FetchedDocument(Protocol):
    """A small document and where it was found."""

    @property
    def data(self) -> bytes:
        """The body."""

    @property
    def url(self) -> str:
        """Its address after redirects."""

    @property
    def content_type(self) -> str | None:
        """The Content-Type field as it came."""


class Documents(Protocol):
    """What fetches documents and small ranges; ``fetch.transport.Transport`` is one."""

    async def read_document(self, url: str, *, max_bytes: int) -> FetchedDocument:
        """The whole body; :class:`errors.MirrorError`, or DocumentError when it is larger."""

    async def size_of(self, url: str) -> int:
        """The file's size in bytes by the server's word; :class:`errors.MirrorError`."""

    async def read_range(self, url: str, wanted: ByteRange, *, size: int | None) -> bytes:
        """Exactly those bytes, of a file of *size* if given; :class:`errors.MirrorError`."""


@dataclasses.dataclass(frozen=True)
class Head:
    """The first HEAD_LENGTH bytes of an image, or all of a smaller one.

    ``verified``: every byte lies under a hash of the manifest that holds. ``failures`` are
    the mirrors that were tried before, with what they did.
    """

    data: bytes
    verified: bool
    failures: tuple[errors.MirrorError, ...] = ()


async def resolve(
    address: str,
    *,
    checksum: Digest | None,
    documents: Documents,
    location: str | None,
    file: str | None = None,
) -> Manifest:
    """The manifest for *address*: with a size, at least one mirror and one usable hash.

    *address* is an http(s) URL or a local path of a metalink, or the URL of an image, which
    needs *checksum*. Beside a metalink, *checksum* must agree with it or is added to its
    hashes. *file* names one of several files in a metalink; *location* is where preferred
    mirrors are. Raises :class:`errors.RequestError` for what the caller can mend,
    :class:`errors.DocumentError` (which names the address) for the document,
    :class:`errors.MirrorError` when it cannot be fetched, and
    :class:`errors.MirrorsExhaustedError` when no size can be had.
    """
    manifest = await _manifest(address, checksum, documents, location, file)
    try:
        manifest = _with_checksum(manifest, checksum)
        if manifest.digest is None and manifest.pieces is None:
            raise errors.DocumentError(
                f"{names.shown(manifest.name)} has no usable hash, so nothing could verify it; "
                "give one with --checksum ALG:HEX"
            )
        if manifest.size is None:
            manifest = _with_size(manifest, await _agreed_size(manifest.mirrors, documents))
    except errors.DocumentError as error:
        raise errors.DocumentError(f"{address}: {error}") from None
    return _with_weakness_noted(manifest)


async def _manifest(
    address: str,
    checksum: Digest | None,
    documents: Documents,
    location: str | None,
    file: str | None,
) -> Manifest:
    """What the address itself says, before checksum and size."""
    scheme = mirrors.scheme_of(address)
    if scheme is None:
        data = await trio.to_thread.run_sync(_read_local_metalink, address, limiter=_READING)
        return await _parsed(address, data, None, location, file)
    if scheme not in mirrors.USABLE_SCHEMES:
        raise errors.RequestError(
            f"{address}: {scheme} is not supported; give an http or https address, or the path "
            "of a metalink on this host"
        )
    url = mirrors.to_uri(address)
    found = await _document_at(url, documents)
    if found is not None:
        return await _parsed(address, found.data, found.url, location, file)
    if file is not None:
        raise errors.RequestError(f"{address}: a file can be chosen in a metalink, this is none")
    if checksum is None:
        raise errors.RequestError(
            f"{address}: an image needs a hash to verify it by: give --checksum ALG:HEX, or the "
            "address of a metalink"
        )
    return Manifest(_name_from(url), None, (checksum,), None, (Mirror(url),), size_is_stated=False)


async def _document_at(url: str, documents: Documents) -> FetchedDocument | None:
    """The metalink at *url*, or None for an image, of which at most 4 KiB are read."""
    suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    if suffix in METALINK_SUFFIXES:
        return await documents.read_document(url, max_bytes=limits.MAX_DOCUMENT_BYTES)
    if suffix in IMAGE_SUFFIXES:
        return None
    try:
        start = await documents.read_range(url, ByteRange(0, read.SNIFF_LENGTH), size=None)
    except errors.MirrorError:
        # Smaller than that, or generated when asked for: such servers know no ranges.
        return await _small_document_at(url, documents)
    if not read.looks_like_metalink(start):
        return None
    return await documents.read_document(url, max_bytes=limits.MAX_DOCUMENT_BYTES)


async def _small_document_at(url: str, documents: Documents) -> FetchedDocument | None:
    try:
        found = await documents.read_document(url, max_bytes=limits.MAX_DOCUMENT_BYTES)
    except errors.DocumentError:
        # Too large for a metalink.
        return None
    kind = (found.content_type or "").partition(";")[0].strip().lower()
    if kind in _METALINK_TYPES or read.looks_like_metalink(found.data):
        return found
    return None


async def _parsed(
    address: str, data: bytes, base_url: str | None, location: str | None, file: str | None
) -> Manifest:
    parse = functools.partial(read.parse, data, base_url=base_url, location=location)
    try:
        document = await trio.to_thread.run_sync(parse, limiter=_PARSING)
        manifest = read.select(document, file)
    except errors.DocumentError as error:
        raise errors.DocumentError(f"{address}: {error}") from None
    kept = document.warnings[:_MAX_WARNINGS_KEPT]
    return dataclasses.replace(manifest, notes=manifest.notes + kept)


def _read_local_metalink(path: str) -> bytes:
    """The document at *path*; only its start is read if it is none. Blocks."""
    try:
        # O_NONBLOCK: a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise errors.RequestError(f"{path}: not a regular file")
            start = file.read(read.SNIFF_LENGTH)
            is_named_so = PurePosixPath(path).suffix.lower() in METALINK_SUFFIXES
            if not is_named_so and not read.looks_like_metalink(start):
                raise errors.RequestError(
                    f"{path}: not a metalink; images on this host cannot be a source, give an "
                    "http or https address, or a metalink"
                )
            # One byte more than parse() takes, so that it sees what is too much.
            return start + file.read(limits.MAX_DOCUMENT_BYTES + 1 - len(start))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise errors.RequestError(
            f"{path}: cannot be read: {reason}; addresses start with http:// or https://"
        ) from error


def _name_from(url: str) -> str:
    """A name for an image that no document names: the last part of its address."""
    try:
        return names.validate_file_name(unquote(urlsplit(url).path.rpartition("/")[2]))
    except errors.DocumentError:
        return "image"


def _with_checksum(manifest: Manifest, checksum: Digest | None) -> Manifest:
    if checksum is None or checksum in manifest.digests:
        return manifest
    for digest in manifest.digests:
        if digest.algorithm is checksum.algorithm:
            raise errors.DocumentError(
                f"it says {digest} for {names.shown(manifest.name)}, --checksum says {checksum}"
            )
    return dataclasses.replace(manifest, digests=(*manifest.digests, checksum))


def _with_size(manifest: Manifest, size: int) -> Manifest:
    """*manifest* with a size by the mirrors' word; pieces that do not fit it go."""
    pieces, notes = manifest.pieces, manifest.notes
    if pieces is not None and Grid(size, pieces.piece_length).count != len(pieces):
        fault = f"{len(pieces)} piece hashes do not fit the {size} bytes that mirrors have"
        if manifest.digest is None:
            raise errors.DocumentError(f"{names.shown(manifest.name)}: {fault}")
        pieces, notes = None, (*notes, f"{fault}, and were passed over")
    return dataclasses.replace(
        manifest, size=size, size_is_stated=False, pieces=pieces, notes=notes
    )


def _with_weakness_noted(manifest: Manifest) -> Manifest:
    if manifest.digest is not None:
        if manifest.digest.algorithm.is_strong:
            return manifest
        kind = manifest.digest.algorithm.value
    else:
        assert manifest.pieces is not None
        if manifest.pieces.algorithm.is_strong:
            return manifest
        kind = f"{manifest.pieces.algorithm.value} piece hashes"
    note = f"only {kind} to verify it by: proof against accidents, not against attackers"
    return dataclasses.replace(manifest, notes=(*manifest.notes, note))


async def _agreed_size(candidates: Sequence[Mirror], documents: Documents) -> int:
    """The size that two mirrors agree on, or the only mirror's word."""
    needed = min(2, len(candidates))
    failures: list[errors.MirrorError] = []
    answers: dict[int, list[str]] = {}
    for mirror in candidates[:_MAX_MIRRORS_ASKED]:
        try:
            size = await documents.size_of(mirror.url)
        except errors.MirrorError as error:
            failures.append(error)
            continue
        if not 0 <= size <= MAX_SIZE:
            failures.append(errors.MirrorError(mirror.url, f"it says that it has {size} bytes"))
            continue
        answers.setdefault(size, []).append(mirror.url)
        if len(answers[size]) == needed:
            return size
    failures += [
        errors.MirrorError(url, f"says {size} bytes")
        for size, urls in answers.items()
        for url in urls
    ]
    raise errors.MirrorsExhaustedError(
        "the document has no size, and no two mirrors agree on one"
        if needed == 2
        else "the size is not known, and the only mirror did not say it",
        tuple(failures),
    )


async def read_head(manifest: Manifest, documents: Documents) -> Head:
    """The head of the image, from the first mirror that can give it.

    Verified by the pieces under it where those have at most MAX_HEAD_PIECE_LENGTH bytes, or
    by the whole-file hashes when the head is the whole file. A mirror with wrong bytes is
    blamed and the next one tried, for what is still missing. Raises
    :class:`errors.MirrorsExhaustedError` with all failures when none is left. The caller
    sets the deadline: a document may list thousands of mirrors.
    """
    if manifest.size is None:
        raise ValueError("no head before the size is known")
    if manifest.size == 0:
        return _empty_head(manifest)
    wanted = ByteRange(0, min(manifest.size, HEAD_LENGTH))
    pieces = manifest.pieces
    if pieces is not None and pieces.piece_length <= MAX_HEAD_PIECE_LENGTH:
        return await _head_by_pieces(manifest, wanted, documents)
    return await _head_in_one(manifest, wanted, documents)


def _empty_head(manifest: Manifest) -> Head:
    wrong = _first_mismatch(b"", manifest.digests)
    if wrong is not None:
        raise errors.DocumentError(
            f"{names.shown(manifest.name)}: it says 0 bytes, and {wrong}, which is not the hash "
            "of nothing"
        )
    return Head(b"", verified=bool(manifest.digests))


async def _head_in_one(manifest: Manifest, wanted: ByteRange, documents: Documents) -> Head:
    is_whole = len(wanted) == manifest.size and bool(manifest.digests)
    failures: list[errors.MirrorError] = []
    turns = _turns(manifest)
    while turns:
        try:
            mirror, data = await _ask(turns, wanted, manifest, documents)
        except errors.MirrorError as error:
            failures.append(error)
            continue
        wrong = _first_mismatch(data, manifest.digests) if is_whole else None
        if wrong is None:
            return Head(data, is_whole, tuple(failures))
        failures.append(errors.MirrorError(mirror.url, f"its file does not have {wrong}"))
    raise _no_head(manifest, failures)


def _turns(manifest: Manifest) -> deque[tuple[Mirror, bool]]:
    """The mirrors to ask, in order; whether each was asked already and took too long."""
    return deque((mirror, False) for mirror in manifest.mirrors)


async def _ask(
    turns: deque[tuple[Mirror, bool]], wanted: ByteRange, manifest: Manifest, documents: Documents
) -> tuple[Mirror, bytes]:
    """The bytes *wanted* from the mirror whose turn it is, which then has no other turn.

    One that takes long is asked again, without haste, when all others had theirs. Raises
    :class:`errors.MirrorError`.
    """
    while True:
        mirror, was_late = turns.popleft()
        is_last = was_late or not turns
        patience = _PATIENCE_SECONDS + len(wanted) / _SLOW_BYTES_PER_SECOND
        with trio.move_on_after(math.inf if is_last else patience):
            return mirror, await documents.read_range(mirror.url, wanted, size=manifest.size)
        turns.append((mirror, True))


def _first_mismatch(data: bytes, digests: Sequence[Digest]) -> Digest | None:
    """The strongest of *digests* that at most HEAD_LENGTH bytes do not have."""
    for digest in digests:
        hasher = digest.algorithm.hasher()
        hasher.update(data)
        if hasher.hexdigest() != digest.hexdigest:
            return digest
    return None


async def _head_by_pieces(manifest: Manifest, wanted: ByteRange, documents: Documents) -> Head:
    grid = manifest.grid
    under = grid.pieces_under(wanted)
    good: dict[int, bytes] = {}
    failures: list[errors.MirrorError] = []
    turns = _turns(manifest)
    while turns:
        missing = [piece for piece in under if piece not in good]
        # At most 8 MiB: one long piece, or several that are shorter than the head.
        span = ByteRange(grid.bytes_of(missing[0]).start, grid.bytes_of(missing[-1]).end)
        try:
            mirror, data = await _ask(turns, span, manifest, documents)
        except errors.MirrorError as error:
            failures.append(error)
            continue
        check = functools.partial(_pieces_that_hold, manifest, missing, data, span.start)
        good |= await trio.to_thread.run_sync(check, limiter=_HASHING)
        if len(good) == len(under):
            joined = b"".join(good[piece] for piece in under)
            return Head(joined[: len(wanted)], verified=True, failures=tuple(failures))
        bad = ", ".join(str(piece) for piece in missing if piece not in good)
        failures.append(errors.MirrorError(mirror.url, f"wrong bytes in piece {bad}"))
    raise _no_head(manifest, failures)


def _pieces_that_hold(
    manifest: Manifest, asked: Sequence[int], data: bytes, offset: int
) -> dict[int, bytes]:
    """Those of the pieces *asked* whose bytes in *data*, which begins at *offset*, are right."""
    pieces, grid = manifest.pieces, manifest.grid
    assert pieces is not None
    good: dict[int, bytes] = {}
    for piece in asked:
        where = grid.bytes_of(piece)
        content = data[where.start - offset : where.end - offset]
        hasher = pieces.algorithm.hasher()
        hasher.update(content)
        if hasher.digest() == pieces[piece]:
            good[piece] = content
    return good


def _no_head(
    manifest: Manifest, failures: Sequence[errors.MirrorError]
) -> errors.MirrorsExhaustedError:
    return errors.MirrorsExhaustedError(
        f"{names.shown(manifest.name)}: no mirror gave the first {HEAD_LENGTH // KiB} KiB as "
        "they must be",
        tuple(failures),
    )
