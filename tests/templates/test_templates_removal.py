"""A template that is being removed: nobody comes to want it, and a failure leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.model import ImageFormat, Template
from ddfs.spool.rest import Demand
from ddfs.templates import Templates
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.test_spool_spool import CONTENT, World, manifest_of, world


class Catalogue:
    """One template, whose row goes when *removing* returns."""

    def __init__(self, template: Template, removing: Callable[[], None]) -> None:
        self._template = template
        self._removing = removing

    def templates(self) -> list[Template]:
        return [self._template]

    def all_declarations(self) -> dict[str, Declaration]:
        return {self._template.name: Declaration("x")}

    def remove_template(self, _name: str) -> Template:
        self._removing()
        return self._template


class Heads:
    """None."""

    def remove(self, _content_id: str) -> None:
        pass


async def templates_of(host: World, url: str, removing: Callable[[], None]) -> Templates:
    order = host.knows(manifest_of(CONTENT, [url]))
    template = Template(
        row=1, name="a", format=ImageFormat.RAW, content_id=order.content_id, size=order.size,
        virtual_size=None, source="x", added_at=1.0, head_is_verified=True, is_readable_early=True,
    )  # fmt: skip
    parts: list[Any] = [Catalogue(template, removing), host.spool, Heads(), None, None, None]
    templates = Templates(
        *parts, location=None, ledger_limiter=trio.CapacityLimiter(1),
        on_added=lambda _: None, on_removed=lambda _: None,
    )  # fmt: skip
    await templates.load()
    return templates


async def test_nobody_starts_a_fetch_of_what_is_being_removed(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)

        def look_at_it() -> None:
            trio.from_thread.run_sync(reader)

        def reader() -> None:
            # What the mount does at a read.
            template = templates.by_row(1)
            if template is not None:
                templates.demand(template, Demand.READER)

        templates = await templates_of(host, url, look_at_it)
        with trio.fail_after(10):
            await templates.remove("a", purge=False)
            await trio.testing.wait_all_tasks_blocked(0.1)
        assert lab[url].requests == 0


async def test_one_that_cannot_be_removed_stays(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:

        def fail() -> None:
            raise errors.CatalogueError("no room")

        templates = await templates_of(host, lab.mirror(CONTENT), fail)
        with pytest.raises(errors.CatalogueError):
            await templates.remove("a", purge=False)
        template = templates.get("a")
        assert templates.by_file_name("a.img") is template
        templates.demand(template, Demand.HAND)
        with trio.fail_after(10):
            await templates.wait_published(template)
