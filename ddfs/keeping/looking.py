"""The facts behind every judgement: what is stored, and who uses it on this host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio

from ddfs import errors
from ddfs.image.paths import Mountpoint
from ddfs.keeping.judgement import StoredFile, Uses
from ddfs.keeping.uses import Inventory, Pool, find_uses
from ddfs.model import PublishedFile, Template

# libvirtd may hang, and so may a file system that a pool is on: nothing is deleted then. More
# than the default of gate.wait, in which libvirtd answers nobody.
LOOK_SECONDS: Final = 60.0

_look_limiter = trio.CapacityLimiter(1)


class Spool(Protocol):
    """What is published."""

    def stored(self) -> list[tuple[str, str, PublishedFile]]:
        """Every published file: content, primary storage, file."""

    def uses(self, content_id: str) -> int:
        """How often it was used."""


class Names(Protocol):
    """The registered templates."""

    def all(self) -> Sequence[Template]:
        """All."""

    def with_content(self, content_id: str) -> Sequence[Template]:
        """All names of one content."""


class Records(Protocol):
    """Pins and last uses, from memory."""

    def is_pinned(self, row: int) -> bool:
        """Whether the template of *row* is pinned."""

    def last_used_at(self, content_id: str) -> float:
        """In POSIX seconds, 0 for never."""


class Look:
    """Of one host. ``take_inventory`` asks libvirt."""

    def __init__(
        self,
        spool: Spool,
        names: Names,
        records: Records,
        take_inventory: Callable[[], Awaitable[Inventory]],
        mountpoint: Path,
        templates_dir: Path,
    ) -> None:
        self._spool = spool
        self._names = names
        self._records = records
        self._take_inventory = take_inventory
        self._mountpoint = mountpoint
        self._templates_dir = templates_dir

    def stored(self) -> list[StoredFile]:
        """Every published file."""
        found = self._spool.stored()
        return [
            self.file(content_id, primary, file.path, file.size)
            for content_id, primary, file in found
        ]

    def file(self, content_id: str, primary: str, path: str, size: int = 0) -> StoredFile:
        """What is known of a file that has a content, published from here or not."""
        named = self._names.with_content(content_id)
        return StoredFile(
            content_id=content_id,
            primary=primary,
            path=path,
            bytes=size,
            names=tuple(sorted(template.name for template in named)),
            last_used_at=self._records.last_used_at(content_id),
            is_pinned=any(self._records.is_pinned(t.row) for t in named),
            uses=self._spool.uses(content_id),
        )

    async def uses(self, paths: Sequence[str]) -> Uses:
        """Who on this host uses the files at *paths*, and any content by its name in the
        template pool; returns within ``LOOK_SECONDS``.
        """
        contents = {t.file_name: t.content_id for t in self._names.all()}
        try:
            with trio.fail_after(LOOK_SECONDS):
                inventory = await self._take_inventory()
                return await trio.to_thread.run_sync(
                    partial(self._find, inventory, contents, paths),
                    limiter=_look_limiter,
                    abandon_on_cancel=True,
                )
        except trio.TooSlowError:
            return Uses(obstacles=(f"nobody could say within {LOOK_SECONDS:.0f} s",))
        except errors.LibvirtError as error:
            return Uses(obstacles=(str(error),))

    def _find(
        self, inventory: Inventory, contents: Mapping[str, str], paths: Sequence[str]
    ) -> Uses:
        pool = Pool(Mountpoint(str(self._mountpoint)), str(self._templates_dir), contents)
        return find_uses(inventory, pool, paths)
