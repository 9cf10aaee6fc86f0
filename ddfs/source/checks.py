"""What an operator gave to check a source by: a checksum file, signatures, keys."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import trio

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.metalink import mirrors
from ddfs.model import Digest, Manifest
from ddfs.source.localfile import read_start
from ddfs.source.location import USABLE_SCHEMES, joined
from ddfs.source.ports import Documents

# Where publishers put the signature of a document, beside it: Ubuntu, openSUSE, Debian, Arch.
SIGNATURE_SUFFIXES: Final = (".gpg", ".asc", ".sign", ".sig")

# Parsing 16 MiB takes a second; a slow disk some more.
_READING: Final = trio.CapacityLimiter(2)


def keyring_for(declaration: Declaration, host_keyring: str | None) -> str | None:
    """The keys by which the source's document has to be signed; None where it need not be.

    The template's own; or the host's, where a signature is named. Raises
    :class:`errors.RequestError` for a signature that no key could prove.
    """
    ring = declaration.keys(host_keyring if declaration.signature else None)
    if declaration.signature and ring is None:
        raise errors.RequestError(
            f"{declaration.source}: a signature proves nothing without the keys that may have "
            "made it: give them with --keyring FILE, or as network.keyring in the settings"
        )
    return ring


async def checksum_digests(
    declaration: Declaration, path: str, documents: Documents, keyring: str | None
) -> tuple[Digest, ...]:
    """What the declared checksum file says of the file whose address has *path*.

    With a *keyring* the file has to be signed, and only what is signed counts. Raises
    :class:`errors.DocumentError` and :class:`errors.MirrorError`, both with its address.
    """
    if declaration.checksum_url is None:
        return ()
    from ddfs.metalink import checksums  # 2 ms, for those alone who have such a file

    address = absolute(declaration.checksum_url, declaration.source)
    try:
        checksums.refuse_other_kinds(address)
        data, found_at = await read(address, documents, checksums.MAX_CHECKSUM_FILE_BYTES)
        data = await must_be_signed(data, found_at, declaration, documents, keyring)
        file = None if is_archive(declaration.source) else declaration.file
        find = partial(checksums.digests_of, data, path, file=file)
        return await trio.to_thread.run_sync(find, limiter=_READING)
    except errors.DocumentError as error:
        raise errors.DocumentError(f"{address}: {error}") from None
    except errors.MirrorError as error:
        if not declaration.checksum_url.startswith("/"):
            raise
        hint = f"a file of this host is written as file://{declaration.checksum_url}"
        raise errors.MirrorError(error.url, f"{error.message}; {hint}") from error


def is_archive(address: str) -> bool:
    """Whether a file can be chosen in what is at *address*."""
    return urlsplit(address).path.lower().endswith(".zip")


async def must_be_signed(
    document: bytes,
    address: str,
    declaration: Declaration,
    documents: Documents,
    keyring: str | None,
) -> bytes:
    """What of *document*, found at *address*, a key in *keyring* has signed.

    Without a keyring all of it, unchecked. Raises :class:`errors.DocumentError` for a
    document that is not signed so.
    """
    if keyring is None:
        return document
    found = await signed(document, address, declaration, documents, keyring)
    if found is None:
        raise unsigned()
    return found


async def signed(
    document: bytes, address: str, declaration: Declaration, documents: Documents, keyring: str
) -> bytes | None:
    """What of *document* is signed, as in :func:`must_be_signed`; None where nothing claims to.

    The signature is the declared one; that of a clear-signed document is in it; otherwise
    it is looked for beside the document.
    """
    from ddfs import signature  # brings subprocess: for those alone who have keys
    from ddfs.metalink import checksums

    if declaration.signature is None and checksums.is_clear_signed(document):
        return await signature.signed_text(document, keyring)
    made = await _signature(address, declaration.signature, documents)
    if made is None:
        return None
    await signature.check_detached(document, made, keyring)
    return document


async def signature_of_image(declaration: Declaration, url: str, documents: Documents) -> str:
    """The armored signature of the image at *url*: the declared one, or one beside it.

    Raises :class:`errors.DocumentError` where there is none, and as :func:`read` does.
    """
    from ddfs import signature

    made = await _signature(url, declaration.signature, documents)
    if made is None:
        raise errors.DocumentError(
            f"{declaration.source}: it must be signed, since a keyring is given; no signature is "
            f"beside it ({', '.join(SIGNATURE_SUFFIXES)}): name it with --signature URL, or a "
            "signed checksum file with --checksum-url URL"
        )
    return signature.armored(made)


def unsigned() -> errors.DocumentError:
    """Nothing that keys were given for is signed."""
    return errors.DocumentError(
        "it must be signed, since a keyring is given; no signature is in it or beside it "
        f"({', '.join(SIGNATURE_SUFFIXES)}): name it with --signature URL"
    )


async def refuse_hopeless(manifest: Manifest, keyring: str) -> None:
    """Refuse a signature of the image that no bytes could make good, before any is fetched.

    Raises :class:`errors.DocumentError`, and as :mod:`ddfs.signature` does.
    """
    if manifest.signature is not None:
        from ddfs import signature

        await signature.refuse_hopeless(manifest.signature, keyring)


async def judge_image(image: Path, armored: str, keyring: str | None) -> str:
    """As :func:`ddfs.signature.check_image`; without keys it is not signed."""
    if keyring is None:
        raise errors.SignatureError(
            "it has to be signed, and there are no keys any more: give them as keyring, of the "
            "template or under [network] in the settings"
        )
    from ddfs import signature

    return await signature.check_image(image, armored, keyring)


async def _signature(address: str, declared: str | None, documents: Documents) -> bytes | None:
    from ddfs import signature

    limit = signature.MAX_SIGNATURE_BYTES
    if declared is not None:
        return (await read(absolute(declared, address), documents, limit))[0]
    for suffix in SIGNATURE_SUFFIXES:
        try:
            return (await read(_beside(address, suffix), documents, limit))[0]
        except (errors.MirrorError, errors.RequestError):
            continue
    return None


def _beside(address: str, suffix: str) -> str:
    if mirrors.scheme_of(address) not in mirrors.USABLE_SCHEMES:
        return address + suffix
    parts = urlsplit(address)
    return parts._replace(path=parts.path + suffix).geturl()


def absolute(address: str, base: str) -> str:
    """*address*, which may be relative to *base*, as an http(s) URL or an absolute path.

    Beside an http(s) *base*, a path is one on its server; a file of this host is named by
    ``file:///path``. Raises :class:`errors.RequestError`.
    """
    scheme = mirrors.scheme_of(address)
    if scheme == "file":
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost"):
            raise errors.RequestError(f"{address}: a file of another host; write file:///path")
        return unquote(parts.path)
    try:
        if scheme is not None:
            return address.strip() if scheme == "nfs" else mirrors.to_uri(address)
        if mirrors.scheme_of(base) == "nfs":
            return joined(base, address)
        if mirrors.scheme_of(base) in mirrors.USABLE_SCHEMES:
            return mirrors.to_uri(address, base)
    except errors.InvalidValueError as error:
        raise errors.RequestError(f"{address}: {error}") from None
    if mirrors.scheme_of(base) == "file":
        base = unquote(urlsplit(base).path)
    elif mirrors.scheme_of(base) is not None and not address.startswith("/"):
        raise errors.RequestError(
            f"{address}: give a whole address, it cannot be relative to {base}"
        )
    return os.path.join(os.path.dirname(os.path.abspath(base)), address)


async def read(address: str, documents: Documents, max_bytes: int) -> tuple[bytes, str]:
    """A small document at an http(s) URL or in a file of this host, and where it was found.

    Raises :class:`errors.MirrorError`, :class:`errors.RequestError` for a file that cannot
    be read, and :class:`errors.DocumentError` for more than *max_bytes*.
    """
    if mirrors.scheme_of(address) in USABLE_SCHEMES:
        found = await documents.read_document(address, max_bytes=max_bytes)
        return found.data, found.url
    # One byte more than allowed, so that what is too much is seen.
    data = await trio.to_thread.run_sync(read_start, address, max_bytes + 1, limiter=_READING)
    if len(data) > max_bytes:
        raise errors.DocumentError(f"larger than the {max_bytes} bytes that it may have")
    return data, address
