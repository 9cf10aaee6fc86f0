"""Disks in rbd pools: copies alone, and nothing is left of one that failed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from ddfs import errors
from ddfs.clone import Clone, CloneOrder, Clones, Images
from ddfs.image import disk
from ddfs.model import ImageFormat, PublishedFile, RbdPool

SIZE = 1_000_000
ROUNDED = 1_000_448


class OneTemplate:
    """A raw template that is here."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_here = True

    def newest(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            exact_name=f"{name}@1",
            file_name=f"{name}.img",
            format=ImageFormat.RAW,
            head_is_verified=True,
            size_is_known=True,
            size=SIZE,
            virtual_size=SIZE,
        )

    async def confirm_published(self, template: Any) -> bool:
        return self.is_here

    def published(self, template: Any) -> PublishedFile:
        return PublishedFile(str(self._path), 1, 2, SIZE, 3)


class FilePools:
    """The pool ``files`` in *path*; all others are rbd's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def directory(self, pool: str) -> Path:
        if pool == "files":
            return self._path
        raise errors.LibvirtError(f"no storage pool called {pool!r}")

    async def capacity(self, pool: str, volume: str) -> int | None:
        raise errors.LibvirtError(f"no storage pool called {pool!r}")

    async def refresh(self, pool: str) -> None:
        return


class NoDomains:
    """None."""

    async def all_xml(self) -> Mapping[str, bytes]:
        return {}

    async def saved(self) -> set[str]:
        return set()


class OnePool:
    """The pool ``ceph``; its images by name, and their sizes."""

    def __init__(self) -> None:
        self.images = {"old": 512}

    def find(self, pool: str) -> RbdPool | None:
        return RbdPool("vms", ("h",)) if pool == "ceph" else None

    def free_bytes(self, pool: str) -> int:
        return 10 * SIZE

    def has(self, pool: str, image: str) -> bool:
        return image in self.images

    def create(self, pool: str, image: str, size: int) -> None:
        if image in self.images:
            raise errors.NameTakenError(f"pool {pool} has a volume {image} already")
        self.images[image] = size

    def delete(self, pool: str, image: str) -> None:
        self.images.pop(image, None)


class Undo:
    """What was said of images in *pool*, in order; deletes what is ours."""

    def __init__(self, pool: OnePool) -> None:
        self.said: list[str] = []
        self._pool = pool

    async def announce(self, image: str) -> None:
        assert image == "old" or image not in self._pool.images
        self.said.append("announced")

    async def made(self, image: str) -> None:
        assert image in self._pool.images
        self.said.append("made")

    async def forget(self, image: str) -> None:
        self.said.append("forgotten")

    async def keep(self) -> None:
        self.said.append("kept")

    async def take_back(self) -> None:
        self.said.append("taken back")
        for image in self._pool.images.keys() - {"old"}:
            self._pool.delete("ceph", image)


class Lab:
    """One host, whose qemu-img is a script."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.templates = OneTemplate(directory / "t.img")
        self.pool = OnePool()
        templates: Any = self.templates
        self.clones = Clones(
            templates,
            directory / "mnt/templates",
            FilePools(directory),
            NoDomains(),
            Images(self.pool),
        )
        self.undo = Undo(self.pool)

    async def make(self, order: CloneOrder) -> Clone:
        return await self.clones.make(order, self.undo)

    def qemu_img(self, script: str) -> None:
        path = self.directory / "qemu-img"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    made = Lab(tmp_path)
    made.qemu_img('echo "$*" > "$0.words"')
    return made


async def test_a_copy_in_ceph_is_raw_and_of_whole_sectors(lab: Lab) -> None:
    made = await lab.make(CloneOrder("t", "vm1", "ceph", full=True))
    assert (str(made.path), made.format, made.how) == ("vms/vm1", ImageFormat.RAW, "copy")
    assert made.capacity == lab.pool.images["vm1"] == ROUNDED
    assert lab.undo.said == ["announced", "made", "kept"]
    assert "file.image=vm1" in (lab.directory / "qemu-img.words").read_text()
    await lab.make(CloneOrder("t", "vm2", "ceph", size=10 * SIZE, full=True))
    assert lab.pool.images["vm2"] == -(-10 * SIZE // 512) * 512


@pytest.mark.parametrize(
    ("order", "text"),
    [
        (CloneOrder("t", "new", "ceph"), "add --full"),
        (CloneOrder("t", "old", "ceph", full=True, replace=True), "--replace cannot be used"),
        (CloneOrder("t", "a@b", "ceph", full=True), "a name with @"),
        (CloneOrder("t", "a/b", "ceph", full=True), "cannot be a volume's name"),
        (
            CloneOrder("t", "new", "ceph", size=SIZE - 1, full=True),
            f"whose disk has .*{SIZE} bytes.*: give that or more",
        ),
        (CloneOrder("t", "old", "ceph", full=True), "has a volume old already"),
        (CloneOrder("t", "new", "other", full=True), "no storage pool called 'other'"),
    ],
)
async def test_what_is_refused_makes_no_image(lab: Lab, order: CloneOrder, text: str) -> None:
    with pytest.raises(errors.DdfsError, match=text):
        await lab.make(order)
    assert lab.pool.images == {"old": 512}
    assert not (lab.directory / "qemu-img.words").exists()


async def test_a_template_that_is_not_here_is_fetched_first(lab: Lab) -> None:
    lab.templates.is_here = False
    with pytest.raises(errors.NotHereYetError, match="ddfs prefetch t"):
        await lab.make(CloneOrder("t", "vm1", "ceph", full=True))
    assert lab.pool.images == {"old": 512}


async def test_nothing_is_left_of_a_copy_that_fails(lab: Lab) -> None:
    lab.qemu_img("echo No space left on device >&2; exit 1")
    with pytest.raises(errors.StorageFullError, match=r"^vms/vm1: "):
        await lab.make(CloneOrder("t", "vm1", "ceph", full=True))
    assert lab.pool.images == {"old": 512}
    assert lab.undo.said == ["announced", "made", "taken back"]


async def test_somebody_elses_image_is_not_taken_for_ours(lab: Lab) -> None:
    with pytest.raises(errors.NameTakenError):
        await lab.make(CloneOrder("t", "old", "ceph", full=True))
    assert lab.undo.said == ["announced", "forgotten", "taken back"]


async def test_nothing_is_left_of_a_copy_that_is_cancelled(lab: Lab) -> None:
    lab.qemu_img('touch "$0.runs"; exec sleep 600')
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.make, CloneOrder("t", "vm1", "ceph", full=True))
        with trio.fail_after(90):
            while not (lab.directory / "qemu-img.runs").exists():
                await trio.sleep(0.01)
        assert lab.pool.images["vm1"] == ROUNDED
        nursery.cancel_scope.cancel()
    assert lab.pool.images == {"old": 512}


async def test_a_copy_that_waits_for_its_turn_can_be_cancelled(lab: Lab) -> None:
    """What nobody may break off, making the image, waits for no copy that takes hours."""
    lab.qemu_img('touch "$0.runs.$$"; exec sleep 600')
    async with trio.open_nursery() as nursery:

        def start(name: str) -> None:
            nursery.start_soon(lab.make, CloneOrder("t", name, "ceph", full=True))

        with trio.fail_after(90):
            start("vm1")
            start("vm2")
            while len(list(lab.directory.glob("qemu-img.runs.*"))) < 2:
                await trio.sleep(0.01)
            start("vm3")
            while "vm3" not in lab.pool.images:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert lab.pool.images == {"old": 512}


async def test_an_overlay_waits_for_no_copy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the end of what is cancelled, which nobody can break off."""
    running = []

    def copy(_new: disk.NewDisk, _source: Path, check: Callable[[], object], *_: object) -> bool:
        running.append(check)
        while True:
            check()
            time.sleep(0.01)

    monkeypatch.setattr(disk.NewDisk, "copy", copy)
    async with trio.open_nursery() as nursery:
        for name in ("a", "b"):
            nursery.start_soon(lab.make, CloneOrder("t", name, "files", full=True))
        with trio.fail_after(90):
            while len(running) < 2:
                await trio.sleep(0.01)
            made = await lab.make(CloneOrder("t", "c", "files"))
        assert (made.how, made.path.exists()) == ("overlay", True)
        nursery.cancel_scope.cancel()
    assert not list(lab.directory.glob("[ab]"))
