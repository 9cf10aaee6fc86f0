"""Checksum files: ``SHA256SUMS``, BSD style, Fedora's ``CHECKSUM``, a lone hash.

What is read, line by line: ``HEX  name`` and ``HEX *name`` of coreutils, with its escapes
(a backslash before the line); ``SHA256 (name) = HEX`` of the BSDs and OpenSSL; a document
of one bare hash. Comments, blank lines and what else is no entry are passed over. Of a
clear-signed document (RFC 9580 section 7) only the signed text is read. The kind of a hash
without a name of its kind is told by its length.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

from ddfs import errors
from ddfs.metalink.names import shown
from ddfs.model import Digest, HashAlgorithm, KiB, MiB

# The sums of a whole Debian mirror's pool have 60,000 lines of some 150 bytes each.
MAX_CHECKSUM_FILE_BYTES: Final = 16 * MiB

# A name of NAME_MAX bytes in folders up to PATH_MAX, and a hash.
MAX_LINE_BYTES: Final = 8 * KiB

_MAX_NAMES_LISTED: Final = 5

# Hashes of the same lengths as SHA-2's: taken for those they would only be wrong.
_OTHER_KINDS: Final = re.compile(r"b2sum|blake|sha-?3|shake|sm3", re.IGNORECASE)

_SUM: Final = re.compile(r"(\\?)([0-9A-Fa-f]{32,128})(?:[ \t]+|[ \t]*(?=\*))(\S.*)")
_BSD: Final = re.compile(r"(\\?)([A-Za-z][A-Za-z0-9/-]{1,19}) ?\((.+)\) ?= ?(\S+)")
_BARE: Final = re.compile(r"[0-9A-Fa-f]{32,128}")
_PAGE: Final = re.compile(r"\s*<(!doctype\s+html|html|\?xml)\b", re.IGNORECASE)
_SIGNED: Final = "-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE: Final = "-----BEGIN PGP SIGNATURE-----"

_BY_LENGTH: Final = {2 * algorithm.digest_size: algorithm for algorithm in HashAlgorithm}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line. ``digest`` is None for a value that cannot be what the line says it is."""

    path: PurePosixPath
    digest: Digest | None
    text: str


def is_clear_signed(document: bytes) -> bool:
    """Whether *document* is a clear-signed one."""
    return document.lstrip().startswith(_SIGNED.encode())


def digests_of(document: bytes, path: str, *, file: str | None = None) -> tuple[Digest, ...]:
    """What the checksum file *document* says of one file; strongest first, at least one.

    *path* is the path of the file's address; *file* is how the document calls it, if that
    differs. Of several entries with the file's name, the one with most of its folders in
    common is meant. Raises :class:`errors.DocumentError`: for no entry, for two that differ,
    and for a hash that is none.
    """
    wanted = PurePosixPath(file if file is not None else unquote(urlsplit(path).path))
    entries, bare = _read(_text_of(document))
    if not entries:
        if len(bare) == 1:
            return bare
        raise errors.DocumentError("it is no checksum file: no line has a hash and a file name")
    best = _best(entries, wanted)
    if not best:
        listed = ", ".join(shown(str(e.path)) for e in entries[:_MAX_NAMES_LISTED])
        more = f" and {len(entries) - _MAX_NAMES_LISTED} more"
        listed += more if len(entries) > _MAX_NAMES_LISTED else ""
        raise errors.DocumentError(
            f"it has no checksum of {shown(wanted.name)}, but of {listed}; if one of those is "
            "meant, name it with --file"
        )
    return _agreed(best, wanted.name)


def refuse_other_kinds(address: str) -> None:
    """Raises :class:`errors.DocumentError` where the name says hashes that are not SHA-2."""
    name = address.rpartition("/")[2]
    if _OTHER_KINDS.search(name):
        raise errors.DocumentError(
            f"{shown(name)} has hashes of a kind that is not known here; give a SHA256SUMS or "
            "SHA512SUMS file"
        )


def _text_of(document: bytes) -> str:
    if len(document) > MAX_CHECKSUM_FILE_BYTES:
        raise errors.DocumentError(
            f"a checksum file of more than {MAX_CHECKSUM_FILE_BYTES} bytes is not read"
        )
    # File names are bytes; those that are no UTF-8 match nothing that anybody asks for.
    text = document.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="replace")
    if not text.strip():
        raise errors.DocumentError("the checksum file is empty")
    if _PAGE.match(text):
        raise errors.DocumentError("this is a web page, not a checksum file")
    return _signed_part(text) if is_clear_signed(document) else text


def _signed_part(text: str) -> str:
    """The text between the headers and the signature, dashes unescaped."""
    headers, blank, rest = text.lstrip().replace("\r\n", "\n").partition("\n\n")
    signed, signature, _ = f"\n{rest}".partition(f"\n{_SIGNATURE}")
    if not blank or not signature or _SIGNED in signed:
        raise errors.DocumentError("it begins as a clear-signed text and does not end as one")
    del headers
    return "\n".join(line.removeprefix("- ") for line in signed.split("\n"))


def _read(text: str) -> tuple[list[_Entry], tuple[Digest, ...]]:
    """The entries, and the hashes that stand alone in their lines."""
    entries: list[_Entry] = []
    bare: dict[Digest, None] = {}
    for line in _lines(text):
        if match := _BSD.fullmatch(line):
            algorithm = HashAlgorithm.parse(match[2].lower().replace("sha2-", "sha"))
            if algorithm is not None:
                entries.append(_entry(match[3], bool(match[1]), algorithm, match[4]))
        elif match := _SUM.fullmatch(line):
            algorithm = _BY_LENGTH.get(len(match[2]))
            name = match[3].removeprefix("*")
            if algorithm is not None and name == "-":
                # Made of what came on standard input: as good as without a name.
                bare[Digest(algorithm, match[2].lower())] = None
            elif algorithm is not None:
                entries.append(_entry(name, bool(match[1]), algorithm, match[2]))
        elif _BARE.fullmatch(line) and len(line) in _BY_LENGTH:
            bare[Digest(_BY_LENGTH[len(line)], line.lower())] = None
    return entries, tuple(bare)


def _lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        plain = line.strip(" \t\r")
        if plain and len(plain) <= MAX_LINE_BYTES and not plain.startswith(("#", ";")):
            yield plain


def _entry(name: str, is_escaped: bool, algorithm: HashAlgorithm, value: str) -> _Entry:
    try:
        digest = Digest(algorithm, value.lower())
    except errors.InvalidValueError:
        digest = None
    return _Entry(PurePosixPath(_unescaped(name) if is_escaped else name), digest, value)


def _unescaped(name: str) -> str:
    r"""What coreutils escapes: ``\\``, ``\n`` and ``\r``."""
    plain = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}
    return re.sub(r"\\[\\nr]", lambda match: plain[match[0]], name)


def _best(entries: Iterable[_Entry], wanted: PurePosixPath) -> list[_Entry]:
    """The entries with the name of *wanted*, and of those the nearest to its path."""
    named = [entry for entry in entries if entry.path.name == wanted.name]
    nearness = {id(entry): _in_common(entry.path, wanted) for entry in named}
    most = max(nearness.values(), default=0)
    return [entry for entry in named if nearness[id(entry)] == most]


def _in_common(one: PurePosixPath, other: PurePosixPath) -> int:
    """How many last parts two paths have in common."""
    count = 0
    for left, right in zip(reversed(one.parts), reversed(other.parts), strict=False):
        if left != right:
            break
        count += 1
    return count


def _agreed(entries: Iterable[_Entry], name: str) -> tuple[Digest, ...]:
    """The digests of entries that are all of one file."""
    found: dict[HashAlgorithm, Digest] = {}
    for entry in entries:
        if entry.digest is None:
            raise errors.DocumentError(f"it says {shown(entry.text)} of {shown(name)}: no hash")
        if found.setdefault(entry.digest.algorithm, entry.digest) != entry.digest:
            raise errors.DocumentError(
                f"it has two entries for {shown(name)} that differ; say which with --file "
                "FOLDER/NAME"
            )
    return tuple(sorted(found.values(), key=lambda digest: -digest.algorithm.strength))
