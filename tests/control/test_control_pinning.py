"""Pinning means the version that a person means: the newest, or the one that is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from ddfs import errors
from ddfs.control.keeping import HostKeeping
from ddfs.control.keeping_messages import Pin
from ddfs.names import version_name
from ddfs.templates.index import Index
from tests.templates.test_templates_index import make


@dataclass
class Pins:
    rows: set[int] = field(default_factory=set)

    async def set_pinned(self, row: int, pinned: bool) -> None:
        (self.rows.add if pinned else self.rows.discard)(row)


def keeping() -> tuple[HostKeeping, Pins]:
    templates, pins = Index(), Pins()
    for row, version in ((1, 1), (2, 2), (3, 3)):
        templates.add(make(row, version_name("debian-12", version), str(version)))
    nobody = cast("Any", None)
    return HostKeeping(cast("Any", templates), nobody, cast("Any", pins), nobody, {}), pins


@pytest.mark.parametrize(
    ("name", "row"), [("debian-12", 3), ("debian-12@1", 1), ("debian-12@2", 2), ("debian-12@3", 3)]
)
async def test_a_version_is_pinned_as_everywhere_else(name: str, row: int) -> None:
    host, pins = keeping()
    await host.pin(Pin((name,)))
    assert pins.rows == {row}
    await host.pin(Pin((name,), pinned=False))
    assert pins.rows == set()


async def test_nothing_is_pinned_when_one_name_is_unknown() -> None:
    host, pins = keeping()
    with pytest.raises(errors.UnknownTemplateError, match="no version 7"):
        await host.pin(Pin(("debian-12", "debian-12@7")))
    assert pins.rows == set()
