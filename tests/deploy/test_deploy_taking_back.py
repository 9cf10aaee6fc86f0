"""What is left of a deployment that fails or is not confirmed, and what is told of it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ddfs import errors
from ddfs.clone import CloneOrder, Images, Undo
from ddfs.deploy import CONFIRM_SECONDS, Deployments, DeployOrder
from ddfs.deploy.deployments import UNDO_AGAIN_SECONDS, UNDO_SECONDS
from ddfs.deploy.placing import obstacles_in
from ddfs.deploy.traces import Notes, Traces
from ddfs.image.disk import NewDisk

ORDER = DeployOrder("t", "vm", "default", user_data=b"x")
TOKEN = "0123456789abcdef"


class Host:
    """libvirt and its one pool, in memory and a directory; it can fail, and hang."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.defined: dict[str, str] = {}
        self.starts = True
        self.is_mounted = True
        self.is_down = False
        self.hangs_in_start = False
        self.hangs_in_remove = False
        self.first_remove_waits_for: trio.Event | None = None

    async def directory(self, pool: str) -> Path:
        if not self.is_mounted:
            raise errors.LibvirtError(f"pool {pool} is not active")
        return self._directory

    async def refresh(self, pool: str) -> None:
        return

    async def make(self, order: CloneOrder, undo: Undo) -> None:
        new = NewDisk(self._directory)
        new.write(b"disk")
        new.mark(order.mark or "")
        new.publish(self._directory / order.volume, replace=False)
        new.close()

    async def facts(self) -> None:
        return None

    async def has_domain(self, name: str) -> bool:
        return name in self.defined.values()

    async def network_problem(self, order: DeployOrder) -> None:
        return None

    async def define(self, order: DeployOrder, made: Any, facts: None) -> None:
        self.defined[made.uuid] = made.name

    async def start(self, identity: str) -> None:
        if self.hangs_in_start:
            await trio.sleep_forever()
        if not self.starts:
            raise errors.LibvirtError("no cpu is left")

    async def remove(self, identity: str) -> None:
        if self.hangs_in_remove:
            await trio.sleep_forever()
        waits_for, self.first_remove_waits_for = self.first_remove_waits_for, None
        if waits_for is not None:
            await waits_for.wait()
        if self.is_down:
            raise errors.LibvirtError("libvirtd does not answer")
        self.defined.pop(identity, None)


class NoCeph:
    """libvirt without a pool of type rbd."""

    def find(self, pool: str) -> None:
        return None


class OneTemplate:
    """A template that is here."""

    def newest(self, name: str) -> Any:
        return SimpleNamespace(name=name, exact_name=f"{name}@1", file_name=f"{name}.qcow2")

    async def confirm_published(self, template: Any) -> bool:
        return True


class Lab:
    """A host, its deployments, and all that is left there."""

    def __init__(self, directory: Path) -> None:
        self.pool, self.notes = directory / "pool", directory / "notes"
        self.pool.mkdir()
        self.host = Host(self.pool)
        self.deployments = self.restarted()

    def restarted(self) -> Deployments:
        async def is_active() -> bool:
            return True

        parts: Any = self.host
        templates: Any = OneTemplate()
        ceph: Any = NoCeph()
        self.deployments = Deployments(
            templates, parts, parts, Images(ceph), parts, self.notes,
            pool_is_active=is_active, most_bytes=lambda: 0,
        )  # fmt: skip
        return self.deployments

    @property
    def left(self) -> tuple[set[str], list[str], int]:
        """Domains, files, and how many notes."""
        names = sorted(path.name for path in self.pool.iterdir())
        return set(self.host.defined.values()), names, len(list(self.notes.glob("*")))


NOTHING: tuple[set[str], list[str], int] = (set(), [], 0)
FILES = ["vm-seed.iso", "vm.qcow2"]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


async def until(clock: MockClock, lab: Lab, left: tuple[set[str], list[str], int]) -> None:
    """Time goes by in steps until that is left; threads are given real time."""
    for _ in range(200):
        if lab.left == left:
            return
        clock.jump(1.0)
        await wait_all_tasks_blocked(0.005)
    assert lab.left == left


async def test_a_confirmed_domain_stays(lab: Lab, mock_clock: MockClock, nursery: Any) -> None:
    made = await lab.deployments.make(ORDER, TOKEN)
    assert lab.left == ({"vm"}, FILES, 1)
    await lab.deployments.confirm(TOKEN)
    assert lab.left == ({"vm"}, FILES, 0)
    nursery.start_soon(lab.deployments.run)
    mock_clock.jump(2 * CONFIRM_SECONDS)
    await wait_all_tasks_blocked(0.05)
    await lab.deployments.withdraw(TOKEN)
    assert lab.left == ({"vm"}, FILES, 0)
    assert made.uuid in lab.host.defined
    nursery.cancel_scope.cancel()


async def test_what_nobody_confirms_is_taken_back(
    lab: Lab, mock_clock: MockClock, nursery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nursery.start_soon(lab.deployments.run)
    await lab.deployments.make(ORDER, TOKEN)
    mock_clock.jump(CONFIRM_SECONDS - 10)
    await wait_all_tasks_blocked(0.05)
    assert lab.left == ({"vm"}, FILES, 1)
    await until(mock_clock, lab, NOTHING)
    assert "nobody has confirmed" in caplog.text
    with pytest.raises(errors.NotDeployedError, match="not confirmed in time"):
        await lab.deployments.confirm(TOKEN)
    nursery.cancel_scope.cancel()


async def test_a_daemon_that_dies_before_the_confirmation_takes_it_back_again(
    lab: Lab, mock_clock: MockClock, nursery: Any
) -> None:
    await lab.deployments.make(ORDER, TOKEN)
    nursery.start_soon(lab.restarted().run)
    await until(mock_clock, lab, NOTHING)
    nursery.cancel_scope.cancel()


async def test_it_is_withdrawn_when_it_runs_and_before(lab: Lab, nursery: Any) -> None:
    await lab.deployments.make(ORDER, TOKEN)
    await lab.deployments.withdraw(TOKEN)
    assert lab.left == NOTHING
    lab.host.hangs_in_start = True
    failures: list[str] = []

    async def make() -> None:
        try:
            await lab.deployments.make(ORDER, TOKEN)
        except errors.NotDeployedError as error:
            failures.append(str(error))

    nursery.start_soon(make)
    while not lab.host.defined:
        await trio.sleep(0.01)
    await lab.deployments.withdraw(TOKEN)
    assert lab.left == NOTHING
    assert failures == ["vm: taken back, as was asked for"]


async def test_a_failed_start_leaves_nothing(lab: Lab) -> None:
    lab.host.starts = False
    with pytest.raises(errors.LibvirtError, match="no cpu is left"):
        await lab.deployments.make(ORDER, TOKEN)
    assert lab.left == NOTHING


async def test_what_cannot_be_taken_back_is_told_and_tried_again(
    lab: Lab, mock_clock: MockClock, nursery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nursery.start_soon(lab.deployments.run)
    lab.host.starts, lab.host.is_down = False, True
    # Why it failed is told, and not that libvirtd is gone by now.
    with pytest.raises(errors.LibvirtError, match="no cpu is left"):
        await lab.deployments.make(ORDER, TOKEN)
    assert lab.left == ({"vm"}, FILES, 1)
    assert "vm: not taken back: libvirtd does not answer; tried again in" in caplog.text
    with pytest.raises(errors.NotDeployedError, match="not everything could be taken back yet"):
        await lab.deployments.withdraw(TOKEN)
    with pytest.raises(errors.NameTakenError, match="an earlier deployment of vm"):
        await lab.deployments.make(ORDER, TOKEN)
    lab.host.is_down = False
    mock_clock.jump(UNDO_AGAIN_SECONDS)
    await until(mock_clock, lab, NOTHING)
    nursery.cancel_scope.cancel()


async def test_taking_back_that_hangs_is_logged_and_finished_at_the_next_start(
    lab: Lab, mock_clock: MockClock, nursery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lab.host.starts, lab.host.hangs_in_remove = False, True
    failures: list[str] = []

    async def make() -> None:
        try:
            await lab.deployments.make(ORDER, TOKEN)
        except errors.LibvirtError as error:
            failures.append(str(error))

    nursery.start_soon(make)
    while not lab.host.defined:
        await trio.testing.wait_all_tasks_blocked(0.005)
    mock_clock.jump(UNDO_SECONDS + 1)
    while not failures:
        await trio.testing.wait_all_tasks_blocked(0.005)
    assert failures == ["no cpu is left"]
    assert "vm: not taken back within 60 s; tried again" in caplog.text
    assert lab.left == ({"vm"}, FILES, 1)
    lab.host.hangs_in_remove = False
    nursery.start_soon(lab.restarted().run)
    await until(mock_clock, lab, NOTHING)
    nursery.cancel_scope.cancel()


async def test_what_is_made_anew_is_not_taken_back_with_what_was_there_before(
    lab: Lab, mock_clock: MockClock, nursery: Any
) -> None:
    lab.host.starts, lab.host.is_down = False, True
    with pytest.raises(errors.LibvirtError, match="no cpu is left"):
        await lab.deployments.make(ORDER, TOKEN)
    lab.host.starts, lab.host.is_down = True, False
    slow = lab.host.first_remove_waits_for = trio.Event()
    nursery.start_soon(lab.deployments.run)
    while lab.host.first_remove_waits_for is not None:
        await wait_all_tasks_blocked(0.005)
    made = trio.Event()

    async def make() -> None:
        await lab.deployments.make(ORDER, TOKEN)
        made.set()

    nursery.start_soon(make)
    await wait_all_tasks_blocked(0.05)
    slow.set()
    while not made.is_set():
        await wait_all_tasks_blocked(0.005)
    await wait_all_tasks_blocked(0.05)
    assert lab.left == ({"vm"}, FILES, 1)
    nursery.cancel_scope.cancel()


async def test_a_seed_that_somebody_else_has_made_meanwhile_is_not_taken(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lab.pool / "vm-seed.iso"
    write = Notes.write

    def overtaken(notes: Notes, traces: Traces) -> None:
        """After the look whether it is there, before it is made."""
        write(notes, traces)
        if str(made) in traces.files:
            made.write_text("mine")

    monkeypatch.setattr(Notes, "write", overtaken)
    with pytest.raises(errors.NameTakenError, match="is there already"):
        await lab.deployments.make(ORDER, TOKEN)
    assert made.read_text() == "mine"
    assert lab.left == (set(), ["vm-seed.iso"], 0)


async def test_what_another_host_has_made_meanwhile_under_the_same_name_stays(
    lab: Lab, mock_clock: MockClock, nursery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """In a pool that both share: this one died before it had made its disk, and comes back."""
    if not keeps_marks(lab.pool):
        pytest.skip("this file system keeps no attributes")
    await lab.deployments.make(ORDER, TOKEN)
    disk = lab.pool / "vm.qcow2"
    disk.unlink()
    foreign = NewDisk(lab.pool)
    foreign.write(b"another's")
    foreign.mark("another UUID")
    foreign.publish(disk, replace=False)
    foreign.close()
    (lab.pool / "vm-seed.iso").unlink()
    (lab.pool / "vm-seed.iso").write_text("of nobody whom we know")
    nursery.start_soon(lab.restarted().run)
    await until(mock_clock, lab, (set(), FILES, 0))
    assert disk.read_bytes() == b"another's"
    assert f"{disk} is another's by now, and stays" in caplog.text
    nursery.cancel_scope.cancel()


def keeps_marks(directory: Path) -> bool:
    probe = directory / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.probe", b"")
    except OSError:
        return False
    finally:
        probe.unlink()
    return True


async def test_files_of_a_pool_that_is_not_mounted_are_taken_back_when_it_is(
    lab: Lab, mock_clock: MockClock, nursery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await lab.deployments.make(ORDER, TOKEN)
    lab.host.is_mounted = False
    mounted = lab.pool.rename(lab.pool.with_name("elsewhere"))
    lab.pool.mkdir()
    nursery.start_soon(lab.restarted().run)
    await until(mock_clock, lab, (set(), [], 1))
    while "pool default is not active" not in caplog.text:
        await wait_all_tasks_blocked(0.005)
    lab.pool.rmdir()
    mounted.rename(lab.pool)
    lab.host.is_mounted = True
    mock_clock.jump(UNDO_AGAIN_SECONDS)
    await until(mock_clock, lab, NOTHING)
    nursery.cancel_scope.cancel()


async def test_one_that_is_confirmed_while_notes_are_read_stays(
    lab: Lab, mock_clock: MockClock, nursery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.deployments.make(ORDER, TOKEN)
    read = Notes.read

    def slowly(notes: Notes) -> Any:
        found = read(notes)
        trio.from_thread.run_sync(nursery.start_soon, lab.deployments.confirm, TOKEN)
        while trio.from_thread.run_sync(lambda: TOKEN in lab.deployments._lent):
            pass
        return found

    monkeypatch.setattr(Notes, "read", slowly)
    nursery.start_soon(lab.deployments.run)
    await until(mock_clock, lab, ({"vm"}, FILES, 0))
    mock_clock.jump(2 * UNDO_AGAIN_SECONDS)
    await wait_all_tasks_blocked(0.05)
    assert lab.left == ({"vm"}, FILES, 0)
    nursery.cancel_scope.cancel()


async def test_a_note_that_cannot_be_read_is_logged_and_kept(
    lab: Lab, mock_clock: MockClock, nursery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lab.notes.mkdir()
    (lab.notes / "vm.json").write_text('{"name": "vm"}')
    caplog.set_level(logging.ERROR)
    nursery.start_soon(lab.deployments.run)
    while "cannot be read" not in caplog.text:
        await trio.testing.wait_all_tasks_blocked(0.005)
    assert lab.left == (set(), [], 1)
    nursery.cancel_scope.cancel()


async def test_what_was_there_before_is_not_taken(lab: Lab) -> None:
    (lab.pool / "vm.qcow2").write_text("mine")
    with pytest.raises(errors.NameTakenError, match="is there already"):
        await lab.deployments.make(ORDER, TOKEN)
    assert (lab.pool / "vm.qcow2").read_text() == "mine"


async def test_a_token_is_used_once(lab: Lab) -> None:
    with pytest.raises(errors.InvalidValueError, match="token"):
        await lab.deployments.make(ORDER, "short")
    await lab.deployments.make(ORDER, TOKEN)
    with pytest.raises(errors.InvalidValueError, match="token"):
        await lab.deployments.make(ORDER, TOKEN)


def test_a_read_only_pool_is_called_so() -> None:
    """/proc/sys is, in many a container, and /sys; what is writable is not called so."""
    found = obstacles_in(Path("/dev/shm"), ORDER)
    assert not any("read-only" in line for line in found)
    read_only = next(
        (p for p in map(Path, ("/sys", "/proc/sys")) if os.statvfs(p).f_flag & os.ST_RDONLY), None
    )
    if read_only is not None:
        assert obstacles_in(read_only, ORDER) == [
            f"{read_only} is read-only; pool default needs to be written to"
        ]
