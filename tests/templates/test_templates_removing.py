"""A name that goes while another name of the same content comes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import trio
import trio.testing

from ddfs.catalogue.catalogue import Catalogue
from ddfs.catalogue.heads import HeadStore
from ddfs.declaration import Declaration
from ddfs.fetch.transport import Transport
from ddfs.image import inspect, packed
from ddfs.model import HEAD_LENGTH, Template
from ddfs.templates import Registration, Templates
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.test_spool_spool import CONTENT, manifest_of, world


class SlowCatalogue:
    """A real catalogue that takes its time to remove a template."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.is_removing, self.may_remove = threading.Event(), threading.Event()

    def remove_template(self, name: str) -> Template:
        self.is_removing.set()
        assert self.may_remove.wait(60)
        return self._catalogue.remove_template(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._catalogue, name)


async def test_the_head_stays_for_a_name_that_comes_while_the_last_one_goes(
    tmp_path: Path,
) -> None:
    catalogue, heads = Catalogue.open(tmp_path), HeadStore(tmp_path)
    slow = SlowCatalogue(catalogue)
    async with MirrorLab() as lab, world(tmp_path) as host, Transport() as transport:
        templates = Templates(
            slow,
            host.spool,
            heads,
            transport,
            inspect.inspect_head,
            packed.look,
            location=None,
            ledger_limiter=trio.CapacityLimiter(1),
            on_added=lambda _: None,
            on_removed=lambda _: None,
        )
        (checksum,) = manifest_of(CONTENT, []).digests
        declared = Declaration(lab.mirror(CONTENT), checksum=checksum)
        with trio.fail_after(60):
            await templates.add(Registration("one", declared))
            async with trio.open_nursery() as nursery:

                async def remove() -> None:
                    await templates.remove("one", purge=False)

                nursery.start_soon(remove)
                await trio.to_thread.run_sync(slow.is_removing.wait, 30)
                nursery.start_soon(templates.add, Registration("two", declared))
                # Until it is stopped by the other one, wherever that is.
                await trio.testing.wait_all_tasks_blocked(0.2)
                slow.may_remove.set()
        assert [template.name for template in templates.all()] == ["two"]
        head = templates.read_head(templates.get("two"), 0, HEAD_LENGTH)
        assert head == CONTENT[:HEAD_LENGTH]
    catalogue.close()
