"""A head start for ``ddfs fetch``: its first requests, before the engine is imported."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from ddfs import errors
from ddfs.cli.destination import destination_of
from ddfs.cli.fetch_request import FetchRequest
from ddfs.model import MiB

if TYPE_CHECKING:
    from ddfs.fetch.headstart import Headstart
    from ddfs.model import Manifest

# A larger document takes as long to parse as the engine to import, and is parsed twice.
_MAX_DOCUMENT_BYTES: Final = MiB


def begin(request: FetchRequest) -> Headstart | None:
    """The requests with which *request* begins, under way; None if that has to be found out.

    Only for the plainest case: a metalink in a file of this host, a fresh destination, no
    limit, login, seed or proxy. Whatever is wrong is left to be found and said by
    :func:`ddfs.cli.fetch.fetch`.
    """
    plain = FetchRequest(
        request.source, output=request.output, as_json=request.as_json, config=request.config
    )
    if request != plain or "://" in request.source or _has_proxy():
        return None
    try:
        return _begin(request)
    except (errors.DdfsError, OSError, ValueError):
        return None


def _begin(request: FetchRequest) -> Headstart | None:
    from ddfs import config
    from ddfs.spool.beside import beside

    network = config.load(request.config).network
    if network.bandwidth or network.bandwidth_per_fetch:
        return None
    manifest = _manifest(request.source, network.location)
    if manifest is None or not manifest.size:
        return None
    destination = destination_of(request.output, manifest.name)
    if os.path.lexists(destination) or os.path.lexists(beside(destination, "part")):
        return None
    if not destination.parent.is_dir():
        return None
    from ddfs.fetch import headstart

    return headstart.begin(manifest, network.location, network.connections_per_host)


def _manifest(path: str, location: str | None) -> Manifest | None:
    from ddfs.metalink import read

    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_DOCUMENT_BYTES:
            return None
        document = read.parse(file.read(), base_url=None, location=location)
    return read.select(document, None)


def _has_proxy() -> bool:
    return any(name.lower().endswith("_proxy") for name in os.environ)
