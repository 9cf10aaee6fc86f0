"""An address to a manifest: the requests that registering needs, besides the head's.

At most: the document, and the sizes from two mirrors where the document has none. A mirror
that fails is followed by the next.
"""

from __future__ import annotations

import dataclasses
from urllib.parse import unquote, urlsplit

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.metalink import mirrors, names
from ddfs.model import Digest, Grid, Manifest, Mirror
from ddfs.source import documents as reading
from ddfs.source.packing import with_packing
from ddfs.source.ports import Documents
from ddfs.source.sizes import agreed_size


async def resolve(
    declaration: Declaration, *, documents: Documents, location: str | None
) -> Manifest:
    """The manifest of what is declared: with a size, at least one mirror and one usable hash.

    The source is an http(s) URL or a local path of a metalink, or the URL of an image, which
    needs a checksum. Beside a metalink, the checksum must agree with it or is added to its
    hashes. *location* is where preferred mirrors are. Raises :class:`errors.RequestError`
    for what the caller can mend, :class:`errors.DocumentError` (which names the address) for
    the document, :class:`errors.MirrorError` when it cannot be fetched, and
    :class:`errors.MirrorsExhaustedError` when no size can be had.
    """
    address = declaration.source
    manifest = await _manifest(declaration, documents, location)
    try:
        manifest = _with_checksum(manifest, declaration.checksum)
        if manifest.digest is None and manifest.pieces is None:
            raise errors.DocumentError(
                f"{names.shown(manifest.name)} has no usable hash, so nothing could verify it; "
                "give one with --checksum ALG:HEX"
            )
        if manifest.size is None:
            manifest = _with_size(manifest, await agreed_size(manifest.mirrors, documents))
    except errors.DocumentError as error:
        raise errors.DocumentError(f"{address}: {error}") from None
    return with_packing(_with_weakness_noted(manifest), declaration)


async def _manifest(
    declaration: Declaration, documents: Documents, location: str | None
) -> Manifest:
    """What the address itself says, before checksum and size."""
    address, file = declaration.source, declaration.file
    scheme = mirrors.scheme_of(address)
    if scheme is None:
        data = await reading.read_local_metalink(address)
        return await reading.parsed_metalink(address, data, None, location, file)
    if scheme not in mirrors.USABLE_SCHEMES:
        raise errors.RequestError(
            f"{address}: {scheme} is not supported; give an http or https address, or the path "
            "of a metalink on this host"
        )
    url = mirrors.to_uri(address)
    found = await reading.metalink_at(url, documents)
    if found is not None:
        return await reading.parsed_metalink(address, found.data, found.url, location, file)
    if file is not None and not url.lower().endswith(".zip"):
        raise errors.RequestError(f"{address}: a file can be chosen in a metalink, this is none")
    if declaration.checksum is None:
        raise errors.RequestError(
            f"{address}: an image needs a hash to verify it by: give --checksum ALG:HEX, or the "
            "address of a metalink"
        )
    digests = (declaration.checksum,)
    return Manifest(_name_from(url), None, digests, None, (Mirror(url),), size_is_stated=False)


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
