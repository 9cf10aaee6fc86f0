"""A template goes, and its file only when it was asked who uses that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from ddfs.control.host import Host

ONE: Any = SimpleNamespace(name="one", content_id="sha-256:ab", file_name="one.qcow2")


class Templates:
    """``others`` have the content of :data:`ONE` too."""

    def __init__(self, others: int) -> None:
        self.others = others
        self.is_freed = False
        self.removed: list[tuple[bool, bool]] = []

    def with_content(self, content_id: str) -> list[Any]:
        assert content_id == ONE.content_id
        return [ONE] * (1 + self.others)

    async def remove(self, name: str, *, purge: bool) -> None:
        # The other name goes at this very moment: the file is then nobody else's.
        self.others = 0
        self.removed.append((purge, self.is_freed))

    @asynccontextmanager
    async def freed(self, template: Any) -> AsyncIterator[None]:
        self.is_freed = True
        yield
        self.is_freed = False


class Asked(Host):
    """Whose template no domain has."""

    def __init__(self, templates: Templates) -> None:
        parts: Any = templates
        self._templates, self.keeping = parts, parts

    async def _users_of(self, template: Any) -> set[str]:
        return set()


async def test_the_file_goes_with_the_last_name_while_nobody_can_use_it() -> None:
    templates = Templates(others=0)
    await Asked(templates).remove_one(ONE, purge=True)
    assert templates.removed == [(True, True)]


async def test_the_file_stays_when_another_name_had_it_and_goes_meanwhile() -> None:
    templates = Templates(others=1)
    await Asked(templates).remove_one(ONE, purge=True)
    assert templates.removed == [(False, False)]
