"""What registering sees of an image: its head, and what the inspector makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import trio

from ddfs import errors, source
from ddfs.declaration import Declaration
from ddfs.model import MAX_SIZE, Manifest
from ddfs.templates.ports import HeadInspector, ImageFacts

# A document may list thousands of dead mirrors, and somebody waits for the answer.
_HEAD_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The head of an image, its manifest with what was learnt on the way, and its facts."""

    head: source.Head
    manifest: Manifest
    facts: ImageFacts


class FirstLook:
    """Looks at the heads of images."""

    def __init__(self, inspect_head: HeadInspector, look: source.Look) -> None:
        self._inspect_head = inspect_head
        self._look = look

    async def at(
        self, manifest: Manifest, declared: Declaration, documents: source.Documents
    ) -> Seen:
        """What is at the beginning of *manifest*'s image, which is as *declared*.

        Raises :class:`errors.ImageError` for what is refused, and
        :class:`errors.MirrorsExhaustedError` when no mirror sends it.
        """
        head, manifest = await self._head(manifest, documents)
        # Where nobody knows to how much it unpacks, it is not found to be cut off.
        size = manifest.published.size
        by_name = source.claimed_by_name(manifest) if declared.format is None else None
        claimed = declared.format or by_name
        inspect = partial(
            self._inspect_head,
            head.data,
            size=MAX_SIZE if size is None else size,
            claimed=claimed,
            tail=await source.read_tail(manifest, head, claimed, documents),
        )
        try:
            facts = await trio.to_thread.run_sync(inspect)
        except errors.ImageError as error:
            if by_name is None:
                raise
            try:
                await trio.to_thread.run_sync(partial(inspect, claimed=None))
            except errors.ImageError:
                raise error from None  # whatever it is called
            raise source.refused_by_name(manifest, by_name, error) from None
        if manifest.signature is not None:
            # What proves it are hashes that nobody has vouched for yet.
            head = replace(head, verified=False)
        return Seen(head, manifest, facts)

    async def _head(
        self, manifest: Manifest, documents: source.Documents
    ) -> tuple[source.Head, Manifest]:
        """The head of the image, and *manifest* with what was learnt on the way."""
        with trio.move_on_after(_HEAD_SECONDS):
            if manifest.packing is None:
                return await source.read_head(manifest, documents), manifest
            return await source.read_packed_head(manifest, documents, self._look)
        raise errors.MirrorsExhaustedError(
            f"{manifest.name}: no mirror sent its first bytes within {_HEAD_SECONDS:.0f} s"
        )
