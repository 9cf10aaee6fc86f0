"""Metalink/HTTP (RFC 6249): what the fields of a response say of a file and its mirrors.

``Link`` (RFC 8288) names duplicates and a metalink; ``Digest`` (RFC 3230, RFC 5843),
``Repr-Digest`` and ``Content-Digest`` (RFC 9530) hash the file. What is malformed is passed
over: a field is an offer, and no worse than none.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ddfs import errors
from ddfs.metalink import mirrors
from ddfs.model import Digest, HashAlgorithm, KiB, Mirror

# h11 takes some 100 KiB of header fields in all.
MAX_FIELD_LENGTH: Final = 64 * KiB

# More duplicates than this help nobody; mirrorbits sends 5.
MAX_LINKS: Final = 500

METALINK_TYPE: Final = "application/metalink4+xml"

_LINK: Final = re.compile(r"\s*<([^<>]*)>")
_PARAMETER: Final = re.compile(
    r"""\s*;\s*([!#$&+.^`|~\w-]+)\*?(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*)))?"""
)
_NEXT: Final = re.compile(r"[^,<]*,")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a response says: hashes of the whole file, mirrors, and a metalink's address."""

    digests: tuple[Digest, ...] = ()
    duplicates: tuple[Mirror, ...] = ()
    described_by: str | None = None


def offer_of(headers: Mapping[str, str], *, url: str, status: int, is_whole: bool) -> Offer:
    """What the *headers* (names in lower case) of a response from *url* offer.

    *is_whole*: the response carries the whole file, so that ``Content-Digest`` is of the
    file; that of a part is not. ``Repr-Digest`` in a redirect is of the redirect itself and
    is passed over; ``Digest`` there is of the file, as MirrorBrain sends it. Hashes of
    encoded content are not of the file. Hashes of RFC 3230 and 9530 weaker than SHA-256
    prove too little to be found by chance, and are not believed.
    """
    fields = {name: value[:MAX_FIELD_LENGTH] for name, value in headers.items()}
    encoding = fields.get("content-encoding", "identity").strip().lower()
    found: dict[HashAlgorithm, Digest] = {}
    disputed: set[HashAlgorithm] = set()
    if encoding in ("", "identity"):
        names = ["digest"]
        if 200 <= status < 300:
            names.append("repr-digest")
            if is_whole and status == 200:
                names.append("content-digest")
        for name in names:
            for digest in _digests(fields.get(name, "")):
                if found.setdefault(digest.algorithm, digest) != digest:
                    disputed.add(digest.algorithm)
    digests = tuple(found[a] for a in found if a not in disputed)
    if disputed:
        digests = ()
    duplicates, described_by = _links(fields.get("link", ""), url)
    return Offer(digests, duplicates, described_by)


def _digests(field: str) -> list[Digest]:
    """The strong hashes of a digest field, old form or new."""
    found: list[Digest] = []
    # Neither form has a comma inside of a hash.
    for member in field.split(","):
        name, _, rest = member.partition("=")
        # RFC 3230 and 5843 say "id-" where the hash is of what is not encoded for the transfer.
        algorithm = HashAlgorithm.parse(name.strip().lower().removeprefix("id-"))
        if algorithm is None or algorithm.strength < HashAlgorithm.SHA256.strength:
            continue
        text = rest.partition(";")[0].strip()
        if text.startswith(":"):
            text = text[1:].partition(":")[0]
        try:
            value = base64.b64decode(text, validate=True)
            found.append(Digest(algorithm, value.hex()))
        except (binascii.Error, ValueError, errors.InvalidValueError):
            continue
    return found


def _links(field: str, url: str) -> tuple[tuple[Mirror, ...], str | None]:
    duplicates: dict[str, Mirror] = {}
    described_by: str | None = None
    position = 0
    for _ in range(MAX_LINKS):
        match = _LINK.match(field, position)
        if match is None:
            break
        position = match.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(field, position):
            quoted, plain = parameter[2], parameter[3]
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain or ""
            # RFC 8288 section 3: of a parameter that is repeated, the first counts.
            parameters.setdefault(parameter[1].lower(), value)
            position = parameter.end()
        following = _NEXT.match(field, position)
        try:
            target = mirrors.to_uri(match[1], url)
        except errors.InvalidValueError:
            target = ""
        # A link about something else than this address (RFC 8288 section 3.2) says nothing here.
        relations = parameters.get("rel", "").lower().split() if "anchor" not in parameters else []
        if target and "duplicate" in relations:
            duplicates.setdefault(target, _mirror(target, parameters))
        elif target and "describedby" in relations and _is_metalink(parameters):
            described_by = described_by or target
        if following is None:
            break
        position = following.end()
    return tuple(duplicates.values()), described_by


def _mirror(target: str, parameters: Mapping[str, str]) -> Mirror:
    """``depth`` says how much of the tree is alike, which only matters for other files."""
    return Mirror(
        target,
        mirrors.priority_from(parameters.get("pri")),
        mirrors.location_from(parameters.get("geo")),
    )


def _is_metalink(parameters: Mapping[str, str]) -> bool:
    return parameters.get("type", "").strip().lower() == METALINK_TYPE
