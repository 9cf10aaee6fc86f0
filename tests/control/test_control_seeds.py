"""Seeds from the command line's client to the templates: checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ddfs import errors
from ddfs.control.client import Client
from ddfs.control.host import Host, HostFigures
from ddfs.control.keeping import HostKeeping
from ddfs.declaration import Declaration
from ddfs.model import ImageFormat, SpoolState, Template
from ddfs.spool.holding import HoldingStatus
from ddfs.spool.rest import Demand
from tests.control.fake import FakeService, RunningDaemon, running


@pytest.fixture
def service() -> FakeService:
    return FakeService("alpine", "debian-12")


@pytest.fixture
def daemon(service: FakeService, tmp_path: Path) -> Iterator[RunningDaemon]:
    with running(service, tmp_path) as found:
        yield found


def test_seeds_reach_the_service(
    daemon: RunningDaemon, service: FakeService, tmp_path: Path
) -> None:
    client = Client(daemon.path, daemon.reader_path)
    seed = tmp_path / "seed ä"
    seed.write_bytes(b"x")
    assert [t.state for t in client.prefetch(["alpine"], [str(seed)])] == ["downloading"]
    assert service.seeds == [str(seed)]
    with pytest.raises(errors.InvalidValueError, match="cannot be a seed"):
        client.prefetch(["debian-12"], ["/gone"])
    assert service.template("debian-12").state == "not-downloaded"


@dataclass
class TwoTemplates:
    """As much of the templates as prefetching needs: one absent, one being fetched."""

    demanded: list[tuple[str, Demand, Sequence[Path]]] = field(default_factory=list)

    def newest(self, name: str) -> Template:
        return Template(
            1, name, ImageFormat.RAW, "sha-256:" + "ab" * 32, 9, None, "s", 0.0, True, True
        )

    def declaration(self, template: Template) -> Declaration:
        return Declaration(template.source)

    def is_fetching(self, template: Template) -> bool:
        return template.name == "busy"

    def demand(self, template: Template, demand: Demand, seeds: Sequence[Path] = ()) -> None:
        self.demanded.append((template.name, demand, seeds))

    def holding(self, template: Template) -> HoldingStatus:
        return HoldingStatus(SpoolState.ABSENT, 0, 0.0, None, None, None, None, None, ())


class Unpinned(HostKeeping):
    """Nothing is pinned, and nothing was ever used."""

    def __init__(self) -> None:
        pass

    def is_pinned(self, template: Template) -> bool:
        return False

    def last_used_at(self, template: Template) -> float | None:
        return None


@pytest.fixture
def templates() -> TwoTemplates:
    return TwoTemplates()


@pytest.fixture
def host(templates: TwoTemplates, tmp_path: Path) -> Host:
    mount = tmp_path / "mount"
    mount.mkdir()
    figures = HostFigures(mount, mount / "templates", ())
    nobody: Any = None
    parts: Any = templates
    return Host(parts, nobody, nobody, nobody, nobody, figures, nobody, nobody, Unpinned(), nobody)


async def test_a_host_starts_with_seeds(
    host: Host, templates: TwoTemplates, tmp_path: Path
) -> None:
    seed = tmp_path / "seed"
    seed.write_bytes(b"x")
    found = await host.prefetch_seeded(["a", "b"], [str(seed)])
    assert [status.name for status in found] == ["a", "b"]
    assert templates.demanded == [("a", Demand.HAND, [seed]), ("b", Demand.HAND, [seed])]


@pytest.mark.parametrize(
    ("names", "seed", "says"),
    [
        (["a"], "gone", "cannot be a seed: No such file"),
        (["a"], "mount/x", "lies in the template pool"),
        (["a"], "", "not a regular file"),
        (["a", "busy"], "seed", "busy is being fetched already"),
    ],
)
async def test_a_host_starts_nothing_with_a_wrong_seed(
    host: Host, templates: TwoTemplates, tmp_path: Path, names: list[str], seed: str, says: str
) -> None:
    for name in ("seed", "mount/x"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(errors.InvalidValueError, match=says):
        await host.prefetch_seeded(names, [str(tmp_path / seed)])
    with pytest.raises(errors.InvalidValueError, match="absolute path"):
        await host.prefetch_seeded(names, ["relative"])
    assert templates.demanded == []
