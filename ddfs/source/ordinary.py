"""The ordinary address of an image: what its server and the operator say of it.

RFC 6249 lets a server name mirrors, hashes and a metalink in the header fields of its
answer. Only the origin is believed, that is the host that the operator named: what a mirror
says about further mirrors would let one liar bring in others (section 8 there).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from ddfs import errors
from ddfs.metalink import limits, links, names
from ddfs.metalink.mirrors import in_order
from ddfs.model import MAX_SIZE, Digest, Manifest, Mirror
from ddfs.source.documents import parsed_metalink
from ddfs.source.ports import Answer, Documents, Look


@dataclasses.dataclass(frozen=True)
class Ordinary:
    """What is known of an address. ``manifest`` may have no hash; then ``validator`` tells
    one state of the file from another, as far as the server does.
    """

    manifest: Manifest
    validator: str


async def describe(
    url: str,
    known: Sequence[Digest],
    documents: Documents,
    location: str | None,
    *,
    may_use_offers: bool = True,
) -> Ordinary:
    """The image at *url*, of which the operator said the digests *known*.

    Raises :class:`errors.MirrorError` when its server does not say its size, and
    :class:`errors.DocumentError` when server and operator contradict each other.
    *may_use_offers*: whether hashes that only the server says, unsigned, may count.
    """
    look = await _look(url, documents)
    assert look.size is not None
    offer = _offer(url, look)
    digests = tuple(known)
    manifest = Manifest(
        name_from(url), look.size, digests, None, (Mirror(url),), size_is_stated=False
    )
    if not may_use_offers:
        return Ordinary(_with_mirrors(manifest, offer.duplicates, location), look.validator)
    if offer.digests:
        manifest = _with_offered_digests(manifest, offer.digests)
    if offer.described_by is not None:
        manifest = await _with_metalink(manifest, offer.described_by, documents, location)
    if manifest.digests:
        manifest = _with_mirrors(manifest, offer.duplicates, location)
    return Ordinary(manifest, look.validator)


async def _look(url: str, documents: Documents) -> Look:
    look = await documents.look_at(url)
    if look.size is not None and 0 <= look.size <= MAX_SIZE:
        return look
    headers = look.answers[-1].headers if look.answers else {}
    encoding = headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise errors.MirrorError(url, f"sends {encoding[:40]!r}, not the plain file")
    raise errors.MirrorError(url, "does not say how large the file is")


def _offer(url: str, look: Look) -> links.Offer:
    """What the origin offers, in its answers up to the first redirect to another host."""
    offers = [
        links.offer_of(
            answer.headers, url=answer.url, status=answer.status, is_whole=answer.is_whole
        )
        for answer in _of_origin(url, look.answers)
    ]
    digests: dict[object, Digest] = {}
    duplicates: dict[str, Mirror] = {}
    described_by: str | None = None
    for offer in offers:
        for digest in offer.digests:
            if digests.setdefault(digest.algorithm, digest) != digest:
                return links.Offer()
        for mirror in offer.duplicates:
            duplicates.setdefault(mirror.url, mirror)
        described_by = described_by or offer.described_by
    return links.Offer(tuple(digests.values()), tuple(duplicates.values()), described_by)


def _of_origin(url: str, answers: Sequence[Answer]) -> Sequence[Answer]:
    host = urlsplit(url).hostname
    count = next((n for n, a in enumerate(answers) if urlsplit(a.url).hostname != host), None)
    return answers[:count]


def _with_offered_digests(manifest: Manifest, offered: Sequence[Digest]) -> Manifest:
    by_algorithm = {digest.algorithm: digest for digest in manifest.digests}
    for digest in offered:
        if by_algorithm.setdefault(digest.algorithm, digest) != digest:
            raise errors.DocumentError(
                f"its server says {digest}, and you {by_algorithm[digest.algorithm]}; "
                "it may have changed"
            )
    return dataclasses.replace(manifest, digests=tuple(by_algorithm.values()))


def _with_mirrors(manifest: Manifest, more: Sequence[Mirror], location: str | None) -> Manifest:
    if not more:
        return manifest
    ordered = in_order((*manifest.mirrors, *more), location)
    return dataclasses.replace(manifest, mirrors=ordered)


async def _with_metalink(
    manifest: Manifest, described_by: str, documents: Documents, location: str | None
) -> Manifest:
    """*manifest* and what the metalink says that its server names; without it, a note.

    The image's own address stays a mirror. A metalink that contradicts what is known is
    passed over: the hashes that are known decide.
    """
    try:
        if manifest.mirrors[0].url.startswith("https:") and described_by.startswith("http:"):
            # Whoever is on the way could then say what the file is.
            raise errors.DocumentError(f"{described_by} leads from https to http")
        found = await documents.read_document(described_by, max_bytes=limits.MAX_DOCUMENT_BYTES)
        described = await _described(found.data, found.url, manifest.name, location)
        _refuse_contradiction(described, manifest)
    except (errors.DocumentError, errors.MirrorError) as error:
        note = f"the metalink that its server names was passed over: {error}"
        return dataclasses.replace(manifest, notes=(*manifest.notes, note))
    digests = {digest.algorithm: digest for digest in (*described.digests, *manifest.digests)}
    mirrors = in_order((*described.mirrors, *manifest.mirrors), location)
    return dataclasses.replace(
        described,
        name=manifest.name,
        size=manifest.size if described.size is None else described.size,
        digests=tuple(digests.values()),
        mirrors=mirrors,
    )


async def _described(data: bytes, url: str, name: str, location: str | None) -> Manifest:
    """The one file of the metalink, or that of several which is called *name*."""
    try:
        return await parsed_metalink(url, data, url, location, None)
    except errors.DocumentError:
        return await parsed_metalink(url, data, url, location, name)


def _refuse_contradiction(described: Manifest, known: Manifest) -> None:
    by_algorithm = {digest.algorithm: digest for digest in known.digests}
    for digest in described.digests:
        if by_algorithm.get(digest.algorithm, digest) != digest:
            raise errors.DocumentError(f"it says {digest}, which is not what is known")
    if described.size not in (None, known.size):
        raise errors.DocumentError(f"it says {described.size} bytes, its server {known.size}")
    if described.digest is None and described.pieces is None:
        raise errors.DocumentError("it has no usable hash")


def name_from(url: str) -> str:
    """A name for an image that no document names: the last part of its address."""
    try:
        return names.validate_file_name(unquote(PurePosixPath(urlsplit(url).path).name))
    except errors.DocumentError:
        return "image"
