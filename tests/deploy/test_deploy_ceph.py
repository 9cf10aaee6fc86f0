"""Deployments into a pool of Ceph that hosts share, and copies there that a daemon died over."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ddfs import errors
from ddfs.clone import CloneOrder, Images, Undo
from ddfs.deploy import Deployed, Deployments, DeployOrder
from ddfs.deploy.deployments import UNDO_AGAIN_SECONDS
from ddfs.model import ImageFormat, PublishedFile, RbdPool

POOL = RbdPool("vms", ("h",))
ORDER = DeployOrder("t", "vm", "ceph", user_data=b"x", untested=True)
TOKEN = "0123456789abcdef"
SIZE = 4096


class Ceph:
    """The pool ``ceph``: its images, each with the host that has made it."""

    def __init__(self) -> None:
        self.images: dict[str, str] = {}
        self.is_busy = False

    def find(self, pool: str) -> RbdPool | None:
        return POOL if pool == "ceph" else None

    def free_bytes(self, pool: str) -> int:
        return SIZE

    def has(self, pool: str, image: str) -> bool:
        return image in self.images

    def create(self, pool: str, image: str, size: int) -> None:
        if image in self.images:
            raise errors.NameTakenError(f"pool {pool} has a volume {image} already")
        self.images[image] = "ours"

    def delete(self, pool: str, image: str) -> None:
        if self.is_busy:
            raise errors.LibvirtError("failed to remove volume: it has watchers")
        self.images.pop(image, None)


class Host:
    """libvirt's domains and pools, and templates that are here."""

    def __init__(self, images: Images, directory: Path) -> None:
        self.defined: dict[str, Deployed] = {}
        self.starts = True
        self._images = images
        self._source = PublishedFile(str(directory / "t.img"), 1, 2, SIZE, 3)

    def newest(self, name: str) -> Any:
        return SimpleNamespace(
            name=name, exact_name=f"{name}@1", file_name=f"{name}.img", size=SIZE + 1
        )

    async def confirm_published(self, template: Any) -> bool:
        return True

    def published(self, template: Any) -> PublishedFile:
        return self._source

    async def refresh(self, pool: str) -> None:
        return

    async def make(self, order: CloneOrder, undo: Undo) -> None:
        """As ddfs.clone does it, but for what it refuses."""
        assert order.full
        place = order.pool, POOL
        await self._images.copy(self._source, ImageFormat.RAW, place, order.volume, SIZE, undo)
        await undo.keep()

    def needs(self, order: DeployOrder) -> tuple[None, int]:
        return None, 0

    async def facts(self) -> Any:
        return SimpleNamespace(arch="x86_64", free_memory_bytes=2**40)

    async def has_domain(self, name: str) -> bool:
        return name in (made.name for made in self.defined.values())

    async def network_problem(self, order: DeployOrder) -> None:
        return None

    async def define(self, order: DeployOrder, made: Deployed, facts: Any) -> None:
        self.defined[made.uuid] = made

    async def start(self, identity: str) -> None:
        if not self.starts:
            raise errors.LibvirtError("no cpu is left")

    async def remove(self, identity: str) -> None:
        self.defined.pop(identity, None)


class Lab:
    """A host, whose qemu-img is a script, and its Ceph."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ceph = Ceph()
        self.host = Host(Images(self.ceph), directory)
        self.notes = directory / "notes"
        self.deployments = self.restarted()

    def restarted(self) -> Deployments:
        async def is_active() -> bool:
            return True

        parts: Any = self.host
        self.deployments = Deployments(
            parts, parts, parts, Images(self.ceph), parts, self.notes,
            pool_is_active=is_active, most_bytes=lambda: 0,
        )  # fmt: skip
        return self.deployments

    def qemu_img(self, script: str) -> None:
        path = self.directory / "qemu-img"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    @property
    def left(self) -> tuple[int, list[str], int]:
        """Domains, images, and how many notes."""
        return len(self.host.defined), sorted(self.ceph.images), len(list(self.notes.glob("*")))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    made = Lab(tmp_path)
    made.qemu_img("exit 0")
    return made


async def until(clock: MockClock, lab: Lab, left: tuple[int, list[str], int]) -> None:
    for _ in range(200):
        if lab.left == left:
            return
        clock.jump(1.0)
        await wait_all_tasks_blocked(0.005)
    assert lab.left == left


async def test_disk_and_seed_are_images_there(lab: Lab) -> None:
    made = await lab.deployments.make(ORDER, TOKEN)
    assert (str(made.disk), str(made.seed), made.rbd) == ("vms/vm", "vms/vm-seed", POOL)
    assert lab.left == (1, ["vm", "vm-seed"], 1)
    await lab.deployments.confirm(TOKEN)
    assert lab.left == (1, ["vm", "vm-seed"], 0)


async def test_who_has_not_said_that_he_wants_it_is_refused(lab: Lab) -> None:
    order = DeployOrder("t", "vm", "ceph")
    [reason] = (await lab.deployments.judge(order)).obstacles[:1]
    assert "never tested" in reason
    assert "--untested" in reason
    with pytest.raises(errors.InvalidValueError, match="add --untested"):
        await lab.deployments.make(order, TOKEN)
    assert lab.left == (0, [], 0)


async def test_what_is_in_the_way_is_said_before_anything_is_fetched(lab: Lab) -> None:
    lab.ceph.images["vm-seed"] = "another's"
    found = (await lab.deployments.judge(ORDER)).obstacles
    assert found[:2] == [
        "pool ceph has a volume vm-seed already",
        "pool ceph has only 4096 bytes free",
    ]
    without_seed = DeployOrder("t", "vm", "ceph", untested=True)
    assert "vm-seed" not in "".join((await lab.deployments.judge(without_seed)).obstacles)


async def test_a_failed_start_leaves_nothing(lab: Lab) -> None:
    lab.host.starts = False
    with pytest.raises(errors.LibvirtError, match="no cpu is left"):
        await lab.deployments.make(ORDER, TOKEN)
    assert lab.left == (0, [], 0)


async def test_somebody_elses_image_stays(lab: Lab) -> None:
    lab.ceph.images["vm-seed"] = "another's"
    with pytest.raises(errors.NameTakenError):
        await lab.deployments.make(ORDER, TOKEN)
    assert lab.left == (0, ["vm-seed"], 0)


async def test_an_image_that_cannot_be_deleted_yet_is_deleted_later(
    lab: Lab, mock_clock: MockClock, nursery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as Ceph takes a client that died for one that uses it: half a minute."""
    nursery.start_soon(lab.deployments.run)
    lab.host.starts, lab.ceph.is_busy = False, True
    with pytest.raises(errors.LibvirtError, match="no cpu is left"):
        await lab.deployments.make(ORDER, TOKEN)
    assert lab.left == (0, ["vm", "vm-seed"], 1)
    assert "it has watchers; tried again in" in caplog.text
    lab.ceph.is_busy = False
    mock_clock.jump(UNDO_AGAIN_SECONDS)
    await until(mock_clock, lab, (0, [], 0))
    nursery.cancel_scope.cancel()


class KilledError(BaseException):
    """kill -9: nothing is taken back."""


async def copy(lab: Lab, undo: Undo) -> None:
    """As ddfs.clone does it."""
    try:
        await lab.host.make(CloneOrder("t", "v", "ceph", full=True), undo)
    except BaseException:
        await undo.take_back()
        raise


async def killed(lab: Lab, monkeypatch: pytest.MonkeyPatch, where: str, undo: Undo) -> None:
    """A copy, over which the daemon dies in a step of it."""

    async def nothing(*_: object) -> None:
        return

    monkeypatch.setattr(undo, "take_back", nothing)
    monkeypatch.setattr(undo, "forget", nothing)
    if where == "copy":
        lab.qemu_img("kill -9 $$")
    else:

        def create(pool: str, image: str, size: int) -> None:
            if where == "behind create":
                Ceph.create(lab.ceph, pool, image, size)
            raise KilledError

        monkeypatch.setattr(lab.ceph, "create", create)
    with pytest.raises((KilledError, errors.StorageError)):
        await copy(lab, undo)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(lab.directory), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("where", "left"), [("create", []), ("behind create", ["v"]), ("copy", [])]
)
async def test_what_a_daemon_leaves_that_dies_over_a_copy(
    lab: Lab,
    mock_clock: MockClock,
    nursery: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    left: list[str],
) -> None:
    """What may be another host's is named, and stays."""
    await killed(lab, monkeypatch, where, lab.deployments.undoing("ceph", "v"))
    assert len(list(lab.notes.glob("*"))) == 1
    nursery.start_soon(lab.restarted().run)
    await until(mock_clock, lab, (0, left, 0))
    named = "pool ceph has a volume v, which may be left of it, or another host's"
    assert (named in caplog.text) == bool(left)
    nursery.cancel_scope.cancel()


async def test_a_copy_that_is_complete_stays_when_the_daemon_dies_then(
    lab: Lab, mock_clock: MockClock, nursery: Any
) -> None:
    undo = lab.deployments.undoing("ceph", "v")
    await copy(lab, undo)
    assert lab.left == (0, ["v"], 0)
    nursery.start_soon(lab.restarted().run)
    mock_clock.jump(UNDO_AGAIN_SECONDS)
    await wait_all_tasks_blocked(0.05)
    assert lab.left == (0, ["v"], 0)
    nursery.cancel_scope.cancel()


async def test_a_copy_that_fails_leaves_nothing(lab: Lab) -> None:
    lab.qemu_img("echo no >&2; exit 1")
    undo = lab.deployments.undoing("ceph", "v")
    with pytest.raises(errors.StorageError, match="vms/v: qemu-img convert: no"):
        await copy(lab, undo)
    assert lab.left == (0, [], 0)


@pytest.mark.parametrize("left", [[], ["v"]])
async def test_an_image_that_was_perhaps_made_when_libvirt_went_away_is_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, left: list[str]
) -> None:
    def create(pool: str, image: str, size: int) -> None:
        if left:
            Ceph.create(lab.ceph, pool, image, size)
        raise errors.LibvirtError("Cannot recv data: Connection reset by peer")

    monkeypatch.setattr(lab.ceph, "create", create)
    with pytest.raises(errors.LibvirtError, match="reset by peer"):
        await copy(lab, lab.deployments.undoing("ceph", "v"))
    assert lab.left == (0, left, 0)
    assert ("virsh vol-delete v ceph" in caplog.text) == bool(left)


async def test_what_a_deletion_without_an_answer_has_deleted_is_not_deleted_again(
    lab: Lab, mock_clock: MockClock, nursery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host has made one of that name meanwhile."""
    answered = threading.Event()

    def delete(pool: str, image: str) -> None:
        Ceph.delete(lab.ceph, pool, image)
        answered.wait(30)

    monkeypatch.setattr(lab.ceph, "delete", delete)
    lab.qemu_img("exit 1")
    mock_clock.autojump_threshold = 0.5
    with pytest.raises(errors.StorageError):
        await copy(lab, lab.deployments.undoing("ceph", "v"))
    answered.set()
    monkeypatch.setattr(lab.ceph, "delete", functools.partial(Ceph.delete, lab.ceph))
    assert lab.left == (0, [], 1)
    lab.ceph.images["v"] = "another's"
    nursery.start_soon(lab.deployments.run)
    await until(mock_clock, lab, (0, ["v"], 0))
    nursery.cancel_scope.cancel()


async def test_what_is_to_be_deleted_yet_is_not_what_is_made_under_its_name(
    lab: Lab, mock_clock: MockClock, nursery: Any
) -> None:
    lab.qemu_img("exit 1")
    lab.ceph.is_busy = True
    with pytest.raises(errors.StorageError):
        await copy(lab, lab.deployments.undoing("ceph", "v"))
    assert lab.left == (0, ["v"], 1)
    lab.qemu_img("exit 0")
    # Somebody has deleted it by hand; but as long as it is not known to be gone …
    del lab.ceph.images["v"]
    with pytest.raises(errors.NameTakenError, match="v in pool ceph is still to be taken back"):
        await copy(lab, lab.deployments.undoing("ceph", "v"))
    lab.ceph.is_busy = False
    await copy(lab, lab.deployments.undoing("ceph", "v"))
    nursery.start_soon(lab.deployments.run)
    mock_clock.jump(2 * UNDO_AGAIN_SECONDS)
    await wait_all_tasks_blocked(0.05)
    assert lab.left == (0, ["v"], 0)
    nursery.cancel_scope.cancel()


async def test_a_copy_that_begins_while_the_daemon_starts_is_not_taken_for_a_dead_ones(
    lab: Lab, mock_clock: MockClock, nursery: Any
) -> None:
    undo = lab.deployments.undoing("ceph", "v")
    await undo.announce("v")
    lab.ceph.create("ceph", "v", SIZE)
    await undo.made("v")
    nursery.start_soon(lab.deployments.run)
    mock_clock.jump(UNDO_AGAIN_SECONDS)
    await wait_all_tasks_blocked(0.05)
    assert lab.left == (0, ["v"], 1)
    await undo.keep()
    assert lab.left == (0, ["v"], 0)
    nursery.cancel_scope.cancel()


async def test_a_daemon_that_dies_while_it_deletes_touches_nothing_afterwards(
    lab: Lab, mock_clock: MockClock, nursery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was deleted, and another host has made one of that name by the time this one is back."""
    await lab.deployments.make(ORDER, TOKEN)
    write, notes = lab.deployments._notes.write, lab.notes
    monkeypatch.setattr(lab.deployments._notes, "remove", lambda _: None)

    def first_only(traces: Any) -> None:
        write(traces)
        raise errors.StorageError("died")

    monkeypatch.setattr(lab.deployments._notes, "write", first_only)
    with pytest.raises(errors.NotDeployedError):
        await lab.deployments.withdraw(TOKEN)
    lab.ceph.images = {"vm-seed": "another's"}
    assert len(list(notes.glob("*"))) == 1
    nursery.start_soon(lab.restarted().run)
    await until(mock_clock, lab, (0, ["vm-seed"], 0))
    assert lab.ceph.images == {"vm-seed": "another's"}
    nursery.cancel_scope.cancel()


async def test_two_at_once_of_one_name(lab: Lab) -> None:
    done: list[str] = []

    async def make(token: str) -> None:
        try:
            await lab.deployments.make(ORDER, token)
            done.append("made")
        except errors.NameTakenError as error:
            done.append(str(error))

    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(make, f"{TOKEN}{number}")
    assert sorted(done) == ["a domain called vm is there already", "made"]
    assert lab.left == (1, ["vm", "vm-seed"], 1)
