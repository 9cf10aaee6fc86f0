"""What a fetch tells whoever watches it: the observer of a :class:`transfer.Transfer`.

The observer is called in the event loop and must neither block nor raise.
"""

from __future__ import annotations

from dataclasses import dataclass

from ddfs import errors


@dataclass(frozen=True, slots=True)
class PieceVerified:
    """A piece of the document matches its hash and is in the partial file.

    Readers may have it. Never sent where the document has no piece hashes: readers then
    wait for the whole file. Not sent for pieces that an earlier run had verified.
    """

    piece: int


@dataclass(frozen=True, slots=True)
class PieceRejected:
    """*mirror_url* sent bytes for *piece* that do not match; they are fetched again."""

    piece: int
    mirror_url: str


@dataclass(frozen=True, slots=True)
class MirrorFailed:
    """One request to a mirror failed. ``is_final``: it is not asked again in this fetch."""

    mirror_url: str
    error: errors.MirrorError
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class MirrorBlamed:
    """The mirror sent wrong bytes, as others proved; it is not asked again in this fetch."""

    mirror_url: str
    reason: str


@dataclass(frozen=True, slots=True)
class WholeFileCompared:
    """All bytes were here and the whole-file hashes were compared with the manifest's."""

    ok: bool


FetchEvent = PieceVerified | PieceRejected | MirrorFailed | MirrorBlamed | WholeFileCompared
