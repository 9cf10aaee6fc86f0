"""What is left of a deployment that fails, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddfs import errors
from ddfs.deploy import Deployments, DeployOrder


class Host:
    """libvirt and its one pool, in memory and a directory; ``is_down`` from the start on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.defined: set[str] = set()
        self.is_down = False

    async def directory(self, pool: str) -> Path:
        return self._directory

    async def refresh(self, pool: str) -> None:
        return

    async def make(self, order: Any) -> None:
        (self._directory / order.volume).write_text("disk")

    async def facts(self) -> None:
        return None

    async def has_domain(self, name: str) -> bool:
        return False

    async def define(self, order: DeployOrder, made: Any, facts: None) -> None:
        self.defined.add(made.uuid)

    async def start(self, identity: str) -> None:
        raise errors.LibvirtError("no cpu is left")

    async def remove(self, identity: str) -> None:
        if self.is_down:
            raise errors.LibvirtError("libvirtd does not answer")
        self.defined.discard(identity)


class OneTemplate:
    """A template that is here."""

    def newest(self, name: str) -> Any:
        return SimpleNamespace(name=name, exact_name=f"{name}@1", file_name=f"{name}.qcow2")

    async def confirm_published(self, template: Any) -> bool:
        return True


def deployments(host: Host, notes: Path) -> Deployments:
    async def is_active() -> bool:
        return True

    parts: Any = host
    templates: Any = OneTemplate()
    return Deployments(
        templates, parts, parts, parts, notes, pool_is_active=is_active, most_bytes=lambda: 0
    )


async def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    pool, notes = tmp_path / "pool", tmp_path / "notes"
    pool.mkdir()
    host = Host(pool)
    with pytest.raises(errors.LibvirtError, match="no cpu is left"):
        await deployments(host, notes).make(DeployOrder("t", "vm", "default", user_data=b"x"))
    assert (host.defined, list(pool.iterdir()), list(notes.iterdir())) == (set(), [], [])


async def test_what_cannot_be_taken_back_now_is_at_the_next_start(tmp_path: Path) -> None:
    pool, notes = tmp_path / "pool", tmp_path / "notes"
    pool.mkdir()
    host = Host(pool)
    host.is_down = True
    # Why it failed is told, and not that libvirtd is gone by now.
    with pytest.raises(errors.LibvirtError, match="no cpu is left"):
        await deployments(host, notes).make(DeployOrder("t", "vm", "default"))
    assert [path.name for path in notes.iterdir()] == ["vm.json"]
    host.is_down = False
    await deployments(host, notes).recover()
    assert (host.defined, list(pool.iterdir()), list(notes.iterdir())) == (set(), [], [])


async def test_what_was_there_before_is_not_taken(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "vm.qcow2").write_text("mine")
    with pytest.raises(errors.NameTakenError, match="is there already"):
        await deployments(Host(pool), tmp_path / "notes").make(DeployOrder("t", "vm", "default"))
    assert (pool / "vm.qcow2").read_text() == "mine"
