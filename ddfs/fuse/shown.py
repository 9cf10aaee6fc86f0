"""The registered templates as the mount shows them: the :class:`view.TemplateView` of a host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, overload

from ddfs import errors
from ddfs.fuse.view import Entry, StorageFigures
from ddfs.model import ByteRange, SpoolState, Template
from ddfs.spool.rest import Demand
from ddfs.templates import Templates, progress_percent

# statfs is asked at every refresh of the pool; figures of a second ago are as good.
_FIGURES_AGE_SECONDS: Final = 1.0


class _LazyEntries(Sequence[Entry]):
    """Entries made when looked at: a listing of 10,000 asks for the list a hundred times."""

    def __init__(self, templates: Sequence[Template], show: Callable[[Template], Entry]) -> None:
        self._templates = templates
        self._show = show

    def __len__(self) -> int:
        return len(self._templates)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return [self._show(template) for template in self._templates[index]]
        return self._show(self._templates[index])


class ShownTemplates:
    """Rows to templates, and back. ``measure`` gives total and free bytes of the storage,
    ``note_followed`` gets the content of a published template whose symlink is followed.

    ``measure`` is one statvfs of a local directory, so it is called here and not in a
    thread; primary storage on a network file system that hangs would hang more than this.
    """

    def __init__(
        self,
        templates: Templates,
        measure: Callable[[], tuple[int, int]],
        note_followed: Callable[[str], None] = lambda _content_id: None,
    ) -> None:
        self._templates = templates
        self._measure = measure
        self._note_followed = note_followed
        self._figures = StorageFigures(0, 0)
        self._measured_at = float("-inf")

    def entries(self) -> Sequence[Entry]:
        """In order of row."""
        return _LazyEntries(self._templates.all(), self._entry)

    def by_name(self, name: str) -> Entry | None:
        """The entry of a file name in the pool."""
        template = self._templates.by_file_name(name)
        return self._entry(template) if template else None

    def by_row(self, row: int) -> Entry | None:
        """The entry of a row."""
        template = self._templates.by_row(row)
        return self._entry(template) if template else None

    def _entry(self, template: Template) -> Entry:
        return Entry(
            row=template.row,
            name=template.file_name,
            size=template.size,
            mtime_ns=int(template.added_at * 1e9),
            published_path=self._templates.link_of(template),
        )

    def bytes_here(self, row: int) -> int:
        """What is stored of it."""
        template = self._templates.by_row(row)
        return self._templates.holding(template).bytes_here if template else 0

    def is_fetching(self, row: int) -> bool:
        """Whether its fetch runs."""
        template = self._templates.by_row(row)
        return template is not None and self._templates.is_fetching(template)

    def attributes(self, row: int) -> Mapping[str, str]:
        """``user.ddfs.*``."""
        template = self._templates.by_row(row)
        if template is None:
            return {}
        holding = self._templates.holding(template)
        algorithm, _, value = template.content_id.partition(":")
        shown = {
            "state": holding.state.value,
            "progress": str(progress_percent(holding, template.size)),
            algorithm.replace("-", ""): value,
            "source": template.source,
        }
        if holding.state is SpoolState.FAILED and holding.error is not None:
            shown["error"] = holding.error
        return shown

    def figures(self) -> StorageFigures:
        """Of primary storage."""
        now = time.monotonic()
        if now - self._measured_at >= _FIGURES_AGE_SECONDS:
            try:
                total, free = self._measure()
            except errors.DdfsError:
                return self._figures
            self._figures = StorageFigures(total, min(free, total))
            self._measured_at = now
        return self._figures

    def read_head(self, row: int, offset: int, length: int) -> bytes | None:
        """Bytes wholly inside the stored head."""
        template = self._templates.by_row(row)
        return self._templates.read_head(template, offset, length) if template else None

    def head_to_keep(self, row: int) -> Callable[[int], bytes] | None:
        """What reads the first bytes of a verified head."""
        template = self._templates.by_row(row)
        return self._templates.verified_head(template) if template else None

    def note_followed(self, row: int) -> None:
        """Whoever follows the name of a published template may be about to stand on it."""
        template = self._templates.by_row(row)
        if template is not None:
            self._note_followed(template.content_id)

    def demand(self, row: int) -> None:
        """Start its fetch."""
        template = self._templates.by_row(row)
        if template is not None:
            self._templates.demand(template, Demand.READER)

    async def read(self, row: int, offset: int, length: int) -> bytes:
        """Verified bytes; waits for them."""
        template = self._templates.by_row(row)
        if template is None:
            raise errors.UnknownTemplateError("the template was removed")
        end = min(offset + length, template.size)
        if end <= offset:
            return b""
        return await self._templates.read(template, ByteRange(offset, end))
