"""Which of a document's hashes are usable.

Unknown kinds are passed over, as RFC 5854 section 4.2.4 asks. A malformed value is passed
over too, unless it would have been the strongest: taking the MD5 beside a broken SHA-256
would let a typing error decide how much is proven.
"""

from __future__ import annotations

import io
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from ddfs import errors
from ddfs.metalink.names import shown
from ddfs.model import MAX_SIZE, Digest, Grid, HashAlgorithm, PieceMap


def whole_file(stated: Iterable[tuple[str, str]], notes: list[str]) -> tuple[Digest, ...]:
    """The digests among pairs of type and value; strongest first, each kind once.

    Raises :class:`errors.DocumentError` for two different values of one kind, and for a
    malformed one that nothing as strong makes up for.
    """
    good: dict[HashAlgorithm, Digest] = {}
    malformed: dict[HashAlgorithm, str] = {}
    unknown: set[str] = set()
    for kind, text in stated:
        algorithm = HashAlgorithm.parse(kind)
        if algorithm is None:
            unknown.add(kind.strip() or "no type")
            continue
        try:
            digest = Digest(algorithm, plain_hex(text))
        except errors.InvalidValueError:
            malformed[algorithm] = text
            continue
        if good.setdefault(algorithm, digest) != digest:
            raise errors.DocumentError(f"it has two different {algorithm.value} hashes")
    best = max((a.strength for a in good), default=-1)
    for algorithm, text in malformed.items():
        fault = f"{shown(text.strip())} is no {algorithm.value} hash"
        if algorithm.strength > best:
            raise errors.DocumentError(f"{fault}, and there is no other hash as strong")
        notes.append(fault)
    if unknown:
        notes.append(f"hashes of unknown kind passed over: {_listed(unknown)}")
    return tuple(sorted(good.values(), key=lambda d: -d.algorithm.strength))


def plain_hex(text: str) -> str:
    """A hash without the blanks and capitals that documents put into it."""
    return "".join(text.split()).lower()


class _Fault(Exception):
    """What is wrong with one map of pieces."""


class PiecesDraft:
    """The hashes of one ``pieces`` element as they come, packed."""

    def __init__(self, kind: str, length: str) -> None:
        self.kind = kind.strip() or "no type"
        self.algorithm = HashAlgorithm.parse(kind)
        self._length = length.strip()
        # Gives its contents away without a copy, of which there may be 12.8 MB.
        self._digests = io.BytesIO()
        # The numbers of version 3; 8 bytes each, since there may be 400,000.
        self._numbers = array("q")
        self._count = 0
        self._fault: str | None = None

    def add(self, text: str, number: str | None = None) -> None:
        """The next hash; *number* is version 3's ``piece`` attribute."""
        if self.algorithm is None or self._fault is not None:
            return
        self._count += 1
        try:
            digest = bytes.fromhex(plain_hex(text))
        except ValueError:
            digest = b""
        if len(digest) != self.algorithm.digest_size:
            self._fault = f"{shown(text.strip())} is no {self.algorithm.value} hash"
            return
        self._digests.write(digest)
        if number is not None:
            plain = number.strip()
            is_number = plain.isascii() and plain.isdigit() and len(plain) < 10
            self._numbers.append(int(plain) if is_number else -1)

    def finish(self, size: int | None) -> PieceMap:
        """The map, or :class:`_Fault` with what is wrong with it."""
        if self._fault is not None:
            raise _Fault(self._fault)
        if self.algorithm is None:
            raise _Fault("unknown kind")
        length = self._piece_length()
        if not self._count:
            raise _Fault("no hashes")
        digests = self._in_order(self.algorithm.digest_size)
        if size is not None and Grid(size, length).count != self._count:
            needed = Grid(size, length).count
            raise _Fault(f"{self._count} hashes where {needed} are needed")
        return PieceMap(self.algorithm, length, digests)

    def _piece_length(self) -> int:
        text = self._length
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise _Fault(f"the length {shown(text)}")
        length = int(text)
        if not 0 < length <= MAX_SIZE:
            raise _Fault(f"the length {length}")
        return length

    def _in_order(self, width: int) -> bytes:
        # Documents without any number follow version 4's rule: the order is the order.
        numbers = self._numbers
        if not numbers or numbers == array("q", range(self._count)):
            return self._digests.getvalue()
        places = {number: place for place, number in enumerate(numbers)}
        if sorted(places) != list(range(self._count)):
            raise _Fault("gaps or repetitions in the numbers of the pieces")
        starts = (places[number] * width for number in range(self._count))
        digests = self._digests.getbuffer()
        return b"".join(digests[start : start + width] for start in starts)


def best_pieces(
    drafts: Sequence[PiecesDraft], size: int | None, notes: list[str]
) -> PieceMap | None:
    """The usable map with the strongest hashes, or None.

    Of two maps of one kind (RFC 5854 section 4.1.3 forbids them) none is taken, since
    nothing says which is right.
    """
    kinds = Counter(draft.algorithm for draft in drafts)
    usable: list[PieceMap] = []
    for draft in drafts:
        try:
            if draft.algorithm is not None and kinds[draft.algorithm] > 1:
                raise _Fault("there are several of that kind")
            usable.append(draft.finish(size))
        except _Fault as fault:
            notes.append(f"{draft.kind[:20]} piece hashes passed over: {fault}")
    return max(usable, key=lambda pieces: pieces.algorithm.strength, default=None)


def _listed(kinds: Iterable[str]) -> str:
    return ", ".join(shown(kind).strip("'") for kind in sorted(kinds))
