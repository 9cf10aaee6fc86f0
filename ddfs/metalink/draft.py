"""What a document says about one file, collected as it comes, and judged at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ddfs import errors
from ddfs.metalink import hashes, limits, mirrors
from ddfs.metalink.names import shown, validate_file_name
from ddfs.model import LOWEST_PRIORITY, MAX_SIZE, Manifest, Mirror

# Notes are for people: more of one kind than this helps nobody.
_MAX_BAD_ADDRESSES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class UrlDraft:
    """One address as the document has it; ``base_url`` is what it is relative to."""

    text: str
    base_url: str | None
    priority: int = LOWEST_PRIORITY
    location: str | None = None
    max_connections: int | None = None


@dataclass(slots=True)
class FileDraft:
    """One file of a document.

    ``metafiles`` counts torrents and other documents about it, ``metalinks`` further metalinks.
    """

    name: str | None
    sizes: list[str] = field(default_factory=list)
    whole_hashes: list[tuple[str, str]] = field(default_factory=list)
    pieces: list[hashes.PiecesDraft] = field(default_factory=list)
    urls: list[UrlDraft] = field(default_factory=list)
    metafiles: int = 0
    metalinks: int = 0
    signatures: list[str] = field(default_factory=list)

    def add_url(self, url: UrlDraft) -> None:
        """Another address, within the cap."""
        if len(self.urls) >= limits.MAX_URLS_PER_FILE:
            raise errors.DocumentError(
                f"more than {limits.MAX_URLS_PER_FILE} addresses for one file"
            )
        self.urls.append(url)

    def add_hash(self, kind: str, text: str) -> None:
        """Another whole-file hash, within the cap."""
        if len(self.whole_hashes) >= limits.MAX_HASHES_PER_FILE:
            raise errors.DocumentError(
                f"more than {limits.MAX_HASHES_PER_FILE} hashes for one file"
            )
        self.whole_hashes.append((kind, text))

    def add_pieces(self, kind: str, length: str) -> None:
        """The start of another ``pieces`` element, within the cap."""
        if len(self.pieces) >= limits.MAX_PIECE_MAPS_PER_FILE:
            raise errors.DocumentError(
                f"more than {limits.MAX_PIECE_MAPS_PER_FILE} maps of pieces for one file"
            )
        self.pieces.append(hashes.PiecesDraft(kind, length))

    def add_signature(self, text: str) -> None:
        """Another OpenPGP signature of the file, within the cap."""
        if len(self.signatures) >= limits.MAX_SIGNATURES_PER_FILE:
            raise errors.DocumentError(
                f"more than {limits.MAX_SIGNATURES_PER_FILE} signatures for one file"
            )
        self.signatures.append(text.strip(mirrors.XML_BLANKS))

    def finish(self, location: str | None) -> Manifest:
        """The manifest, or :class:`errors.DocumentError` with why the file is refused."""
        if self.name is None:
            raise errors.DocumentError("a file without a name")
        name = validate_file_name(self.name)
        notes: list[str] = []
        try:
            size = self._size(notes)
            digests = hashes.whole_file(self.whole_hashes, notes)
            pieces = hashes.best_pieces(self.pieces, size, notes)
            found = self._mirrors(location, notes)
        except errors.DocumentError as error:
            raise errors.DocumentError(f"{shown(name)}: {error}") from None
        # All of them, as it comes: who has keys decides what they are worth.
        signature = "\n".join(text for text in self.signatures if text) or None
        is_stated = size is not None
        return Manifest(
            name, size, digests, pieces, found, is_stated, tuple(notes), signature=signature
        )

    def _size(self, notes: list[str]) -> int | None:
        """The one size; what is no number counts as not stated."""
        sizes: set[int] = set()
        for text in (size.strip(mirrors.XML_BLANKS) for size in self.sizes):
            if text.isascii() and text.isdigit():
                # int() refuses thousands of digits with an error of its own.
                sizes.add(int(text) if len(text.lstrip("0")) < 20 else MAX_SIZE + 1)
            elif text:
                notes.append(f"the size {shown(text)} is no number and was passed over")
        if len(sizes) > 1:
            raise errors.DocumentError("it has two different sizes")
        size = sizes.pop() if sizes else None
        if size is not None and size > MAX_SIZE:
            raise errors.DocumentError("its size is beyond what a file can have")
        return size

    def _mirrors(self, location: str | None, notes: list[str]) -> tuple[Mirror, ...]:
        usable: list[Mirror] = []
        other_schemes: Counter[str] = Counter()
        bad: list[str] = []
        for url in self.urls:
            scheme = mirrors.scheme_of(url.text.strip(mirrors.XML_BLANKS))
            if scheme is not None and scheme not in mirrors.USABLE_SCHEMES:
                other_schemes[scheme[:20]] += 1
                continue
            try:
                address = mirrors.to_uri(url.text, url.base_url)
            except errors.InvalidValueError as error:
                bad.append(f"an address was passed over: {error.message}")
                continue
            usable.append(Mirror(address, url.priority, url.location, url.max_connections))
        if self.metalinks:
            # A chain of documents would let anybody in it decide what the file is.
            other_schemes["further metalink, not followed"] += self.metalinks
        if self.metafiles:
            other_schemes["torrent or metafile"] += self.metafiles
        passed_over = ", ".join(f"{n} {scheme}" for scheme, n in sorted(other_schemes.items())[:10])
        if not usable:
            why = f" (it has {passed_over})" if passed_over else ""
            why += f" ({bad[0]})" if bad else ""
            raise errors.DocumentError(f"no http or https address{why}")
        if passed_over:
            notes.append(f"addresses passed over: {passed_over}")
        notes.extend(bad[:_MAX_BAD_ADDRESSES_SHOWN])
        if len(bad) > _MAX_BAD_ADDRESSES_SHOWN:
            notes.append(f"and {len(bad) - _MAX_BAD_ADDRESSES_SHOWN} more such addresses")
        return mirrors.in_order(usable, location)
