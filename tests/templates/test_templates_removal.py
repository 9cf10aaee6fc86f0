"""A template that is being removed: nobody comes to want it, and a failure leaves it as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.model import ImageFormat, Manifest, Template
from ddfs.source import Head
from ddfs.spool.rest import Demand
from ddfs.templates import Templates
from ddfs.templates.first_look import Seen
from ddfs.templates.recorder import Resolved
from ddfs.templates.templates import Registration
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

    def add_template(self, *, name: str, **_: object) -> Template:
        return replace(self._template, row=2, name=name)


class Heads:
    """In memory."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}

    def put(self, content_id: str, data: bytes) -> None:
        self.stored[content_id] = data

    def remove(self, content_id: str) -> None:
        self.stored.pop(content_id, None)


class FirstLook:
    """Sees what is there."""

    async def at(self, manifest: Manifest, *_: object) -> Seen:
        return Seen(Head(CONTENT[:9], verified=False), manifest, Facts())


@dataclass(frozen=True)
class Facts:
    """Of a raw disk."""

    format: ImageFormat = ImageFormat.RAW
    virtual_size: int | None = None


async def templates_of(host: World, url: str, removing: Callable[[], None]) -> Templates:
    order = host.knows(manifest_of(CONTENT, [url]))
    template = Template(
        row=1, name="a", format=ImageFormat.RAW, content_id=order.content_id, size=order.size,
        virtual_size=None, source="x", added_at=1.0, head_is_verified=True, is_readable_early=True,
    )  # fmt: skip
    heads = Heads()
    heads.put(template.content_id, CONTENT[:9])
    parts: list[Any] = [Catalogue(template, removing), host.spool, heads, None, None, None]
    templates = Templates(
        *parts, location=None, ledger_limiter=trio.CapacityLimiter(1),
        on_added=lambda _: None, on_removed=lambda _: None,
    )  # fmt: skip
    templates._first_look = FirstLook()  # type: ignore[assignment]
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


async def test_a_name_that_comes_while_the_last_one_goes_has_a_head(tmp_path: Path) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        url = lab.mirror(CONTENT)
        manifest = manifest_of(CONTENT, [url])
        going, goes = threading.Event(), threading.Event()

        def wait() -> None:
            going.set()
            goes.wait(10)

        templates = await templates_of(host, url, wait)

        async def register() -> None:
            asked: Any = Resolved(manifest, None)  # type: ignore[arg-type]
            await templates.register(Registration("b", Declaration("x")), asked)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(templates.remove, "a", purge=False))
                await trio.to_thread.run_sync(going.wait)
                nursery.start_soon(register)
                await trio.testing.wait_all_tasks_blocked(0.05)
                goes.set()
        heads: Any = templates._heads
        assert heads.stored == {templates.get("b").content_id: CONTENT[:9]}
