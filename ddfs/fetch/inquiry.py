"""The requests of one registration (or check) of a source, with what is declared about it.

An inquiry knows what the operator typed, so that it knows for every other address who
named it: a document that was read, and the network that this came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.fetch.access import Grants, Terms, is_remote, may_leave_tls, typed_addresses
from ddfs.fetch.address import Address, AddressError
from ddfs.fetch.documents import Documents, FetchedDocument, Look
from ddfs.fetch.elsewhere import Elsewhere, is_nfs, place_of, typed_elsewhere
from ddfs.fetch.networks import PUBLIC, network_of
from ddfs.model import ByteRange, Digest, HashAlgorithm, Manifest
from ddfs.versions import Validator, Visit


class Inquiry:
    """Small requests for one declaration, one source of :class:`ddfs.source` documents.

    ``grants`` are what it is asked with.
    """

    def __init__(
        self, documents: Documents, elsewhere: Elsewhere, declaration: Declaration, grants: Grants
    ) -> None:
        self.grants = grants
        self._documents = documents
        self._elsewhere = elsewhere
        self._typed_elsewhere = typed_elsewhere(declaration)
        typed = typed_addresses(declaration)
        self._typed = {(address.origin, address.target) for address in typed}
        self._typed_origins = {address.origin for address in typed}
        # What a document on this host names, the operator named.
        self._is_local = not is_remote(declaration.source) and not is_nfs(declaration.source)
        # The network that all documents and typed addresses were reached in; None before the
        # first, and of several the public one, which may name the least.
        self._network: str | None = None
        self._may_leave_tls = False
        self.expect((declaration.checksum,) if declaration.checksum is not None else ())

    def expect(self, digests: Sequence[Digest]) -> None:
        """What the file has to be is known by now, from what was typed or read.

        A strong digest that came over a trusted way lets its mirrors redirect from https to
        http. No document ever may.
        """
        strength = max((each.algorithm.strength for each in digests), default=-1)
        self._may_leave_tls = self.grants.hash_is_trusted and (
            strength >= HashAlgorithm.SHA256.strength
        )

    async def read_document(self, url: str, *, max_bytes: int) -> FetchedDocument:
        """See :meth:`ddfs.fetch.transport.Transport.read_document`."""
        if self._is_elsewhere(url):
            data, server = await self._elsewhere.read_all(url, max_bytes)
            if server:
                # What it names may be where it came from, as with any other document.
                self._heard(network_of(server))
            return FetchedDocument(data, url, None, {})
        terms = replace(self._terms(url), heard=self._heard)
        return await self._documents.read_document(url, max_bytes=max_bytes, terms=terms)

    async def size_of(self, url: str) -> int:
        """See :meth:`ddfs.fetch.transport.Transport.size_of`."""
        if self._is_elsewhere(url):
            return await self._elsewhere.size_of(url)
        return await self._documents.size_of(url, self._terms(url))

    async def look_at(self, url: str) -> Look:
        """See :meth:`ddfs.fetch.transport.Transport.look_at`."""
        if self._is_elsewhere(url):
            return await self._elsewhere.look_at(url)
        return await self._documents.look_at(url, self._terms(url))

    async def read_range(self, url: str, wanted: ByteRange, *, size: int | None) -> bytes:
        """See :meth:`ddfs.fetch.transport.Transport.read_range`."""
        if self._is_elsewhere(url):
            return await self._elsewhere.read_range(url, wanted, size)
        return await self._documents.read_range(url, wanted, size=size, terms=self._terms(url))

    async def revisit(self, before: Validator) -> Visit:
        """Ask whether an address still serves what it served, without its body.

        Raises :class:`errors.MirrorError`.
        """
        return await self._documents.revisit(before, self._terms(before.url))

    def attributed(self, manifest: Manifest) -> Manifest:
        """*manifest* with the network that each mirror was named from.

        From now on its hashes decide whether a mirror may redirect from https to http.
        """
        self._may_leave_tls = may_leave_tls(self.grants, manifest)
        mirrors = (replace(m, named_from=self._named_from(m.url)) for m in manifest.mirrors)
        return replace(manifest, mirrors=tuple(mirrors))

    def _is_elsewhere(self, url: str) -> bool:
        """Whether *url* is no http address; raises MirrorError if it is none to be asked.

        A document may never lead to files of this host, or to an NFS server: only what the
        operator typed does.
        """
        if not self._elsewhere.has(url):
            return False
        if place_of(url) not in self._typed_elsewhere:
            raise errors.MirrorError(url, "only an operator may name it, not a document")
        return True

    def _terms(self, url: str) -> Terms:
        named_from = self._named_from(url)
        heard = self._heard if self._is_typed_origin(url) else None
        return Terms(self.grants, named_from, self._may_leave_tls, heard)

    def _heard(self, network: str) -> None:
        self._network = network if self._network in (None, network) else PUBLIC

    def _is_typed_origin(self, url: str) -> bool:
        try:
            return Address.parse(url).origin in self._typed_origins
        except AddressError:
            return False

    def _named_from(self, url: str) -> str | None:
        if self._is_local:
            return None
        try:
            address = Address.parse(url)
        except AddressError:
            return PUBLIC  # and refused when it is asked
        if (address.origin, address.target) in self._typed:
            return None
        if self._network is None and address.origin in self._typed_origins:
            return None
        return self._network if self._network is not None else PUBLIC
