"""Signatures of images: asked for by names, judged over all of a file before it is published.

The bytes of a content are the same under all its names, and so is its file: it is published
when all signatures hold that its names ask for, and a name that asks for one is not bound to
a content that is here already before that was judged by it. Until then nobody reads a byte
under such a name, though hashes hold: they stand in a document that nobody has vouched for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ddfs import errors, source
from ddfs.declaration import Declaration
from ddfs.model import Manifest, PublishedFile
from ddfs.spool.spool import Spool

# The armored signature, and the path of the keys that may have made it, if there are any.
Demand = tuple[str, str | None]


class Signatures:
    """Implements :class:`ddfs.spool.ports.Judge`.

    *asking* gives the signature and the declaration of each name of a content, from memory;
    *keyring* is a path of the host's keys.
    """

    def __init__(
        self,
        spool: Spool,
        asking: Callable[[str], Sequence[tuple[str | None, Declaration]]],
        keyring: str | None,
    ) -> None:
        self._spool = spool
        self._asking = asking
        self._keyring = keyring
        # Of names that are being bound.
        self._soon: list[tuple[str, Demand]] = []

    def is_asked_for(self, content_id: str) -> bool:
        """Whether a content has to be signed."""
        return bool(self._demands(content_id))

    def _demands(self, content_id: str) -> Sequence[Demand]:
        """What a content has to be signed with, each once."""
        named = [
            self._demand(signature, declared)
            for signature, declared in self._asking(content_id)
            if signature is not None
        ]
        soon = [demand for other, demand in self._soon if other == content_id]
        return list(dict.fromkeys([*named, *soon]))

    def _demand(self, signature: str, declared: Declaration) -> Demand:
        return signature, declared.keys(self._keyring)

    async def judge(self, content_id: str, image: Path) -> None:
        """Refuse a complete file (as mirrors have it) that is not signed as it has to be.

        By what is asked for when this is called. Raises :class:`errors.SignatureError`, and
        as :func:`ddfs.signature.check_image` does.
        """
        for signature, keyring in self._demands(content_id):
            await source.judge_image(image, signature, keyring)

    @asynccontextmanager
    async def binding(self, manifest: Manifest, declared: Declaration) -> AsyncIterator[None]:
        """While a name is bound to *manifest*, by whose signature its content is judged.

        First what is published, then also what is published meanwhile. Raises why that is
        not signed so, before the name is bound.
        """
        if manifest.signature is None:
            yield
            return
        content_id = manifest.content_id
        demand = self._demand(manifest.signature, declared)
        entry = content_id, demand
        self._soon.append(entry)
        try:
            # A fetch that publishes now may not have heard of it.
            await self._spool.wait_while_publishing(content_id)
            # Also one that is not to be used now: it may come back.
            for published in self._spool.files_of(content_id):
                await self._judge_published(manifest, published, demand)
            yield
        finally:
            self._soon.remove(entry)

    async def _judge_published(
        self, manifest: Manifest, published: PublishedFile, demand: Demand
    ) -> None:
        if manifest.packing is not None:
            raise errors.RequestError(
                f"{manifest.name}: it is here unpacked, and its signature is of the packed file; "
                "remove it with --purge, then declare it again"
            )
        try:
            await source.judge_image(Path(published.path), *demand)
        except errors.SignatureError as error:
            raise errors.SignatureError(f"{published.path}: {error}") from None
        except errors.StorageError:
            # One that is gone counts no more, and is judged when it is fetched again.
            await self._spool.confirm_published(manifest.content_id)
            if published in self._spool.files_of(manifest.content_id):
                raise
