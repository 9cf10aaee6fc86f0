"""The head of an image, from the first mirror that can give it, verified where that goes."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from ddfs import errors
from ddfs.metalink import names
from ddfs.model import (
    HEAD_LENGTH,
    MAX_HEAD_PIECE_LENGTH,
    ByteRange,
    Digest,
    KiB,
    Manifest,
    Mirror,
)
from ddfs.source.ports import Documents

# A mirror that has not sent a range of the head after this long, and the time that the range
# takes on a slow line, is passed over for the next one. Without it, three mirrors that accept
# connections and say nothing take all the time that registering has.
_PATIENCE_SECONDS: Final = 4.0
_SLOW_BYTES_PER_SECOND: Final = 256 * KiB

# Hashing 8 MiB takes some 20 ms: in a thread, one at a time.
_HASHING: Final = trio.CapacityLimiter(1)


@dataclass(frozen=True)
class Head:
    """The first HEAD_LENGTH bytes of an image, or all of a smaller one.

    ``verified``: every byte lies under a hash of the manifest that holds. ``failures`` are
    the mirrors that were tried before, with what they did.
    """

    data: bytes
    verified: bool
    failures: tuple[errors.MirrorError, ...] = ()


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


async def read_part(manifest: Manifest, wanted: ByteRange, documents: Documents) -> bytes:
    """Some bytes of the file, unverified, from the first mirror that gives them.

    Raises :class:`errors.MirrorsExhaustedError`. The caller sets the deadline.
    """
    failures: list[errors.MirrorError] = []
    turns = _turns(manifest)
    while turns:
        try:
            return (await _ask(turns, wanted, manifest, documents))[1]
        except errors.MirrorError as error:
            failures.append(error)
    raise errors.MirrorsExhaustedError(
        f"{names.shown(manifest.name)}: no mirror gave bytes {wanted.start} to {wanted.end}",
        tuple(failures),
    )


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
