"""What a TLS connection trusts, and what it shows of itself.

Always the host's trust store (``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` replace it), and what
was added: for this host (:mod:`ddfs.fetch.certificates`) or for one template.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.fetch import certificates
from ddfs.fetch.access import ClientCertificate, Grants
from ddfs.fetch.address import Address

# Making one takes 30 ms, most of it the host's 140 authorities. More are kept by a host with
# as many templates that have certificates of their own, and then made again.
_MAX_KEPT: Final = 64

# Files are looked at, and contexts made, in threads. Those that templates name may be on a
# disk that hangs, which must not hold up the others.
_OWN_FILES: Final = trio.CapacityLimiter(1)
_DECLARED_FILES: Final = trio.CapacityLimiter(4)

_Key = tuple[object, ...]


class Trust:
    """Makes and keeps TLS contexts. ``directory`` has the certificates of this host."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._kept: dict[_Key, ssl.SSLContext] = {}

    async def context(self, grants: Grants, address: Address) -> ssl.SSLContext:
        """For a new connection to *address*; the same one as long as no file has changed.

        Raises :class:`errors.InvalidValueError` for a file that cannot be used.
        """
        certificate = grants.certificates.get(address.origin)
        make = partial(self._context, grants.ca_files, certificate)
        limiter = _DECLARED_FILES if grants.ca_files or certificate else _OWN_FILES
        return await trio.to_thread.run_sync(make, limiter=limiter)

    async def check(self, grants: Grants) -> None:
        """Raises :class:`errors.InvalidValueError` for a file of *grants* that cannot be used."""
        for certificate in {None, *grants.certificates.values()}:
            if certificate is not None or grants.ca_files:
                make = partial(self._context, grants.ca_files, certificate)
                await trio.to_thread.run_sync(make, limiter=_DECLARED_FILES)

    def _context(
        self, ca_files: Sequence[str], certificate: ClientCertificate | None
    ) -> ssl.SSLContext:
        added = self._added()
        shown = [certificate.certificate, certificate.key] if certificate else []
        key = tuple(_signature(path) for path in (*added, *ca_files, *shown) if path is not None)
        context = self._kept.get(key)
        if context is None:
            context = ssl.create_default_context()
            for path in added:
                _trust_if_possible(context, path)
            for path in ca_files:
                _trust(context, path)
            if certificate is not None:
                _show(context, certificate)
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[key] = context
        return context

    def _added(self) -> list[str]:
        if self._directory is None:
            return []
        try:
            with os.scandir(self._directory) as entries:
                return sorted(entry.path for entry in entries if entry.name.endswith(".pem"))
        except OSError:
            return []


def _signature(path: str) -> tuple[object, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return (path,)
    return path, found.st_ino, found.st_size, found.st_mtime_ns


def _trust(context: ssl.SSLContext, path: str) -> None:
    try:
        pem = certificates.usable_certificates(path, time.time())
    except errors.InvalidValueError as error:
        raise errors.InvalidValueError(f"ca_file: {error}") from None
    _load(context, pem)


def _trust_if_possible(context: ssl.SSLContext, path: str) -> None:
    """One of the host's: a broken one must not end every connection, ``ca list`` shows it."""
    try:
        pem = certificates.read_bundle(path)
        certificates.certificates_in(pem, path)
    except errors.InvalidValueError:
        return
    _load(context, pem)


def _load(context: ssl.SSLContext, pem: str) -> None:
    context.load_verify_locations(cadata=pem)


def _show(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    def no_passphrase() -> str:
        raise errors.InvalidValueError(
            f"client_key: {certificate.key or certificate.certificate}: it is encrypted, and "
            "nobody is there to type the passphrase; store it in the clear, for root alone"
        )

    try:
        context.load_cert_chain(certificate.certificate, certificate.key, no_passphrase)
    except ssl.SSLError as error:
        reason = "the key does not belong to it" if "MISMATCH" in str(error.reason) else ""
        raise errors.InvalidValueError(
            f"client_cert: {certificate.certificate}: "
            + (reason or "no usable PEM certificate and key in it (or in client_key)")
        ) from None
    except OSError as error:
        raise errors.InvalidValueError(
            f"client_cert: {certificate.certificate}: cannot be read, or its key cannot: "
            f"{error.strerror}"
        ) from None
