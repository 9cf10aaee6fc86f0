"""What is declared to a manifest: the requests that registering needs, besides the head's.

At most: the document with its checksum file and signature, or a look at the image; and the
sizes from two mirrors where the document has none. A mirror that fails is followed by the
next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.metalink import mirrors, names
from ddfs.model import MAX_SIZE, Digest, Grid, Manifest, Mirror, unverified_id
from ddfs.source import checks
from ddfs.source import documents as reading
from ddfs.source.location import located, uri_of
from ddfs.source.packing import with_packing
from ddfs.source.ports import Documents
from ddfs.source.sizes import agreed_size

_SIGNED_ALONE: Final = "only a signature to verify it by: a reader waits for the whole file"

# How many mirrors are asked about a file that only its signature verifies.
_MAX_MIRRORS_LOOKED_AT: Final = 8

# Of a signature that the host's keys do not know: not each publisher's are there.
_NOT_OURS: Final = (
    "; give its publisher's keys with --keyring FILE, or with --no-keyring nobody asks who has "
    "signed it"
)


async def resolve(
    declaration: Declaration,
    *,
    documents: Documents,
    location: str | None,
    keyring: str | None = None,
) -> Manifest:
    """The manifest of what is declared: with a size, at least one mirror and one usable hash.

    The source is the address or local path of a metalink or of an image. An
    image needs a checksum: the operator's, that of a checksum file, or what its server says
    (:mod:`ddfs.source.ordinary`); without any, only where the declaration says unverified,
    and then the manifest has no hash but an ``unverified_id``. Hashes from several places
    must agree, and all count. *location* is where preferred mirrors are, *keyring* a path of
    the host's keys, for declarations that name a signature and no keys. Raises
    :class:`errors.RequestError` for what the caller can mend,
    :class:`errors.DocumentError` (which names the address) for the document,
    :class:`errors.MirrorError` when it cannot be fetched, and
    :class:`errors.MirrorsExhaustedError` when no size can be had.
    """
    ring = checks.keyring_for(declaration, keyring)
    image_ring = declaration.keys(keyring)
    declaration = await located(declaration)
    manifest = await _metalink(declaration, documents, location, ring)
    if image_ring is None and manifest is not None:
        manifest = dataclasses.replace(manifest, signature=None)
    if manifest is None:
        manifest = await _image(declaration, documents, location, ring)
    else:
        manifest = await _completed(manifest, declaration, documents, ring)
    if image_ring is None:
        manifest = dataclasses.replace(manifest, signature=None)
    else:
        try:
            await checks.refuse_hopeless(manifest, image_ring)
        except errors.DocumentError as error:
            hint = "" if declaration.keyring else _NOT_OURS
            raise errors.DocumentError(
                f"{declaration.source}: {names.shown(manifest.name)}: {error}{hint}"
            ) from None
    return with_packing(manifest, declaration)


async def _completed(
    manifest: Manifest, declaration: Declaration, documents: Documents, ring: str | None
) -> Manifest:
    """What a metalink says, with the operator's checksums, and a size."""
    address = declaration.source
    found = await checks.checksum_digests(declaration, manifest.name, documents, ring)
    try:
        manifest = _with_digests(manifest, declaration.checksum, found)
        if manifest.digest is None and manifest.pieces is None:
            if manifest.signature is not None:
                return await _signed_alone(manifest, documents)
            raise errors.DocumentError(
                f"{names.shown(manifest.name)} has no usable hash, so nothing could verify it; "
                "give one with --checksum ALG:HEX or --checksum-url URL"
            )
        if manifest.size is None:
            documents.expect(manifest.digests)
            manifest = _with_size(manifest, await agreed_size(manifest.mirrors, documents))
    except errors.DocumentError as error:
        raise errors.DocumentError(f"{address}: {error}") from None
    return _with_weakness_noted(manifest)


async def _signed_alone(manifest: Manifest, documents: Documents) -> Manifest:
    """*manifest*, which has a signature and no hash, bound to one state of one mirror's file.

    The first one that answers and has the size: bytes of several could be put together
    without anybody being to blame when the signature does not hold.
    """
    failures = []
    for mirror in manifest.mirrors[:_MAX_MIRRORS_LOOKED_AT]:
        try:
            look = await documents.look_at(mirror.url)
        except errors.MirrorError as error:
            failures.append(error)
            continue
        if look.size is None or not 0 <= look.size <= MAX_SIZE:
            failures.append(errors.MirrorError(mirror.url, "does not say how large the file is"))
        elif manifest.size not in (None, look.size):
            failures.append(errors.MirrorError(mirror.url, f"says {look.size} bytes"))
        else:
            return dataclasses.replace(
                manifest,
                size=look.size,
                size_is_stated=False,
                mirrors=(mirror,),
                unverified_id=unverified_id(mirror.url, look.size, look.validator),
                notes=(*manifest.notes, _SIGNED_ALONE),
            )
    raise errors.MirrorsExhaustedError(
        f"{names.shown(manifest.name)}: no mirror has the file", tuple(failures)
    )


async def _metalink(
    declaration: Declaration, documents: Documents, location: str | None, ring: str | None
) -> Manifest | None:
    """What the metalink says that the source is; None for an image."""
    address, file = declaration.source, declaration.file
    found_at: str | None = None
    if mirrors.scheme_of(address) == "file":
        return None
    if mirrors.scheme_of(address) is None:
        data = await reading.read_local_metalink(address)
    else:
        found = await reading.metalink_at(uri_of(address), documents)
        if found is None:
            return None
        data, found_at = found.data, found.url
    signed: bytes | None = None
    if ring is not None and declaration.checksum_url is None:
        try:
            signed = await checks.signed(data, found_at or address, declaration, documents, ring)
        except errors.DocumentError as error:
            raise errors.DocumentError(f"{address}: {error}") from None
        data = data if signed is None else signed
    manifest = await reading.parsed_metalink(address, data, found_at, location, file)
    if ring is None:
        return manifest
    if declaration.checksum_url is not None:
        # The checksum file is what is signed: nobody vouches for the metalink's own hashes,
        # and its pieces would be read before the signed one is reached.
        return dataclasses.replace(
            manifest, digests=(), pieces=None, size_is_stated=False, signature=None
        )
    if signed is None and manifest.signature is None:
        raise errors.DocumentError(f"{address}: {checks.unsigned()}")
    if signed is not None and (manifest.digest or manifest.pieces):
        # Who signed the document vouches for its hashes: nothing has to wait for more.
        return dataclasses.replace(manifest, signature=None)
    return manifest


async def _image(
    declaration: Declaration, documents: Documents, location: str | None, ring: str | None
) -> Manifest:
    """The image at an ordinary address."""
    address, url = declaration.source, uri_of(declaration.source)
    _refuse_what_cannot_be_chosen(declaration)
    signature: str | None = None
    if ring is not None and declaration.checksum_url is None:
        signature = await checks.signature_of_image(declaration, url, documents)
    from ddfs.source import ordinary  # 3 ms that a metalink does not need

    # First, since it may refuse the image without any request to its server.
    found = await checks.checksum_digests(declaration, urlsplit(url).path, documents, ring)
    known = _agreeing((*found, *([declaration.checksum] if declaration.checksum else ())), address)
    documents.expect(known)
    try:
        described = await ordinary.describe(
            url, known, documents, location, may_use_offers=ring is None
        )
    except errors.DocumentError as error:
        raise errors.DocumentError(f"{address}: {error}") from None
    manifest = dataclasses.replace(described.manifest, signature=signature)
    if signature is not None and not manifest.digests:
        # As of a metalink with a signature alone: of one state of one file.
        manifest = dataclasses.replace(manifest, mirrors=(Mirror(url),))
        return _unverified(manifest, described.validator, declaration, _SIGNED_ALONE)
    if manifest.digests or manifest.pieces is not None:
        return _with_weakness_noted(manifest)
    if not declaration.unverified:
        raise errors.RequestError(
            f"{address}: an image needs a hash to verify it by: give --checksum ALG:HEX or "
            "--checksum-url URL, or the address of a metalink; or take what comes, and only "
            "that from then on, with --unverified"
        )
    note = "unverified: nothing says what its bytes must be; those of the first fetch are kept"
    if not described.validator:
        note += ". Its server does not say when it changes"
    return _unverified(manifest, described.validator, declaration, note)


def _refuse_what_cannot_be_chosen(declaration: Declaration) -> None:
    address = declaration.source
    is_chosen_in = declaration.checksum_url is not None or checks.is_archive(address)
    if declaration.file is not None and not is_chosen_in:
        raise errors.RequestError(
            f"{address}: a file can be chosen in a metalink or a checksum file, this is neither"
        )


def _unverified(
    manifest: Manifest, validator: str, declaration: Declaration, note: str
) -> Manifest:
    """*manifest* without a hash, bound to the state of its one address."""
    assert manifest.size is not None
    url = manifest.mirrors[0].url
    member = declaration.file if checks.is_archive(declaration.source) else None
    return dataclasses.replace(
        manifest,
        unverified_id=unverified_id(url, manifest.size, validator, member),
        notes=(*manifest.notes, note),
    )


def _agreeing(digests: Sequence[Digest], address: str) -> tuple[Digest, ...]:
    """Each digest once. Raises :class:`errors.DocumentError` for two of a kind that differ."""
    by_algorithm: dict[object, Digest] = {}
    for digest in digests:
        if by_algorithm.setdefault(digest.algorithm, digest) != digest:
            raise errors.DocumentError(
                f"{address}: the checksum file says {by_algorithm[digest.algorithm]}, "
                f"--checksum says {digest}"
            )
    return tuple(by_algorithm.values())


def _with_digests(manifest: Manifest, checksum: Digest | None, found: Sequence[Digest]) -> Manifest:
    """*manifest* with what the operator and the checksum file say; all must agree."""
    told = [(digest, "the checksum file says") for digest in found]
    told += [(checksum, "--checksum says")] if checksum is not None else []
    digests = {digest.algorithm: digest for digest in manifest.digests}
    for digest, who in told:
        known = digests.setdefault(digest.algorithm, digest)
        if known != digest:
            raise errors.DocumentError(
                f"it says {known} for {names.shown(manifest.name)}, {who} {digest}"
            )
    return dataclasses.replace(manifest, digests=tuple(digests.values()))


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
