"""Where a source is: an address, or a path of this host, and what the path has."""

from __future__ import annotations

import dataclasses
import os
import posixpath
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import trio

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.metalink import mirrors, read
from ddfs.source.documents import METALINK_SUFFIXES
from ddfs.source.localfile import read_start

# What an operator may name. A document names http and https alone.
USABLE_SCHEMES: Final = frozenset({*mirrors.USABLE_SCHEMES, "file", "nfs"})

_LOOKING: Final = trio.CapacityLimiter(1)


async def located(declaration: Declaration) -> Declaration:
    """*declaration* with its source as a path, for a metalink on this host, or an address.

    Of a file on this host, its start decides which it is. Raises
    :class:`errors.RequestError` for what is no regular file or cannot be read.
    """
    scheme = mirrors.scheme_of(declaration.source)
    if scheme not in (None, "file"):
        if scheme not in USABLE_SCHEMES:
            raise errors.RequestError(
                f"{declaration.source}: {scheme} is not supported; give an http, https, nfs or "
                "file address, or a path of this host"
            )
        return declaration
    path = declaration.source if scheme is None else _path_of(declaration.source)
    uri = await trio.to_thread.run_sync(_uri_of_image, path, limiter=_LOOKING)
    return dataclasses.replace(declaration, source=path if uri is None else uri)


def uri_of(address: str) -> str:
    """*address*, which :func:`located` gave, in the form in which mirrors are asked."""
    if mirrors.scheme_of(address) in mirrors.USABLE_SCHEMES:
        return mirrors.to_uri(address)
    return address.strip()


def joined(base: str, address: str) -> str:
    """*address*, relative to *base* on an NFS server."""
    parts = urlsplit(base)
    folder = posixpath.dirname(unquote(parts.path))
    path = posixpath.normpath(posixpath.join(folder, address))
    return parts._replace(path=quote(path)).geturl()


def _path_of(address: str) -> str:
    parts = urlsplit(address)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise errors.RequestError(
            f"{address}: a file address names a file of this host, as in file:///path"
        )
    return path


def _uri_of_image(path: str) -> str | None:
    """The address of the file at *path*; None for a metalink. Blocks."""
    hint = "; addresses start with http:// or https://"
    start = read_start(path, read.SNIFF_LENGTH, hint=hint)
    is_named_so = PurePosixPath(path).suffix.lower() in METALINK_SUFFIXES
    if is_named_so or read.looks_like_metalink(start):
        return None
    return Path(os.path.abspath(path)).as_uri()
