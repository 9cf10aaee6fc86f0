"""Hosts on one real directory: what each says, and what it does with its own files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from ddfs import errors
from ddfs.keeping import sharing
from ddfs.keeping.judgement import StoredFile, Uses
from ddfs.keeping.sharing import Sharing
from ddfs.primary.shared import SharedDirectoryStorage

CONTENT = "sha-256:" + "ab" * 32
NAME = "x@abababababab.img"


@dataclass
class Files:
    """A spool with one file, and the look at who uses it."""

    path: Path
    users: list[str] = field(default_factory=list)
    is_withheld: bool = False
    wanted: Callable[[str], None] = lambda _: None
    counted: int = 0
    failures: list[str] = field(default_factory=list)

    def withhold(
        self, content_id: str, primary: str, uses: int | None, wanted: Callable[[str], None]
    ) -> bool:
        assert (content_id, primary) == (CONTENT, "default")
        if uses is not None and uses != self.counted:
            return False
        self.is_withheld, self.wanted = True, wanted
        return True

    async def give_back(self, content_id: str, primary: str) -> None:
        assert (content_id, primary) == (CONTENT, "default")
        if self.failures:
            raise errors.StorageError(self.failures.pop())
        self.is_withheld = False

    def file(self, content_id: str, primary: str, path: str) -> StoredFile:
        return StoredFile(content_id, primary, path, 1, ("x",), 0.0, False, self.counted)

    async def uses(self, paths: list[str]) -> Uses:
        assert str(self.path / NAME) in paths
        return Uses(of_path={str(self.path / NAME): self.users} if self.users else {})


class Node:
    """One host; its task runs only inside :meth:`running`."""

    def __init__(self, directory: Path, host_id: str) -> None:
        self.storage = SharedDirectoryStorage("default", directory, host_id)
        self.storage.prepare()
        self.files = Files(directory)
        self.sharing = Sharing(
            self.storage, self.files, self.files, wait_seconds=60.0, host_name=f"{host_id}.example"
        )  # type: ignore[arg-type]

    @property
    def stored(self) -> list[StoredFile]:
        return [self.files.file(CONTENT, "default", str(self.files.path / NAME))]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sharing, "POLL_SECONDS", 0.02)
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / NAME).write_bytes(b"x")
    return directory


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(90):
        while not condition():
            await trio.sleep(0.01)


async def test_what_one_host_wants_while_another_asks_stays(directory: Path) -> None:
    a, b = Node(directory, "a"), Node(directory, "b")
    async with trio.open_nursery() as nursery:
        for node in (a, b):
            await node.sharing.start()
            nursery.start_soon(node.sharing.run)
        b.files.users = ["domain vm"]
        async with a.sharing.asked(a.stored, 0.0) as [consent]:
            assert consent.objection == "on host b.example: used by domain vm"
        assert not b.files.is_withheld
        [hearsay] = await a.sharing.known(a.stored, hearsay=True)
        assert hearsay.users_elsewhere == ["domain vm on host b.example"]
        b.files.users = []
        async with a.sharing.asked(a.stored, 0.0) as [consent]:
            assert consent.objection is None
            assert a.files.is_withheld
            assert b.files.is_withheld
            # Somebody on b comes to want it.
            b.files.wanted(CONTENT)
            await until(lambda: not b.files.is_withheld)
            async with a.sharing.committed(consent) as is_agreed:
                assert not is_agreed
        assert not a.files.is_withheld
        async with a.sharing.asked(a.stored, 0.0) as [consent]:
            async with a.sharing.committed(consent) as is_agreed:
                assert is_agreed
                # Too late: b has to wait until it is over.
                b.files.wanted(CONTENT)
                await trio.sleep(0.1)
                assert b.files.is_withheld
                assert not b.storage.claim(CONTENT)
        await until(lambda: not b.files.is_withheld)
        nursery.cancel_scope.cancel()


async def test_what_a_dead_host_was_deleting_is_used_by_nobody_until_it_is_forgotten(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Node(directory, "dead")
    await dead.sharing.start()
    assert dead.storage.commit(dead.storage.propose(CONTENT, NAME, 0.0))
    # Later, another host starts.
    b = Node(directory, "b")
    await b.sharing.start()
    assert b.files.is_withheld
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.sharing.run)
        with caplog.at_level(logging.WARNING):
            b.files.wanted(CONTENT)
            await until(lambda: "ddfs forget dead" in caplog.text)
        assert b.files.is_withheld
        with pytest.raises(errors.InvalidValueError, match="may live"):
            await b.sharing.forget("dead")
        with pytest.raises(errors.InvalidValueError, match="is this host"):
            await b.sharing.forget("b.example")
        assert not await b.sharing.forget("unknown")
        monkeypatch.setattr(sharing, "BEAT_SECONDS", 0.01)
        monkeypatch.setattr(sharing, "SILENT_SECONDS", 0.2)
        await trio.sleep(0.3)
        [file] = await b.sharing.known(b.stored, hearsay=False)
        assert "on host dead.example, silent for " in str(file.doubt)
        assert [problem for problem, _ in await b.sharing.absent()] == [
            "host dead.example does not answer, so that nothing is deleted"
        ]
        assert await b.sharing.forget("dead.example")
        await until(lambda: not b.files.is_withheld)
        assert await b.sharing.absent() == []
        # It was not dead: it says again what it uses.
        nursery.start_soon(dead.sharing.run)
        await until(lambda: {r.host for r in b.storage.records()} == {"b", "dead"})
        nursery.cancel_scope.cancel()


async def test_a_host_that_starts_again_ends_what_it_had_begun(directory: Path) -> None:
    before = Node(directory, "a")
    await before.sharing.start()
    before.storage.propose(CONTENT, NAME, 0.0)
    assert before.storage.commit(before.storage.propose(CONTENT, NAME, 0.0))
    before.storage.close()
    again = Node(directory, "a")
    await again.sharing.start()
    assert again.files.is_withheld
    assert again.storage.intents() == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.sharing.run)
        await until(lambda: not again.files.is_withheld)
        nursery.cancel_scope.cancel()


async def test_a_file_that_cannot_be_looked_at_comes_back_when_it_can(directory: Path) -> None:
    a, b = Node(directory, "a"), Node(directory, "b")
    b.files.failures = ["it hangs"] * 3
    async with trio.open_nursery() as nursery:
        for node in (a, b):
            await node.sharing.start()
            nursery.start_soon(node.sharing.run)
        async with a.sharing.asked(a.stored, 0.0) as [consent]:
            assert consent.objection is None
            # Whoever wants it is given way all the same.
            b.files.wanted(CONTENT)
            await until(lambda: not a.storage.intents())
        await until(lambda: not b.files.is_withheld)
        assert not b.files.failures
        nursery.cancel_scope.cancel()


async def test_a_record_that_makes_no_sense_keeps_everything(directory: Path) -> None:
    a, b = Node(directory, "a"), Node(directory, "b")
    await a.sharing.start()
    await b.sharing.start()
    [record] = (a.storage.partial_dir.parent / "uses").glob("b.json")
    record.write_text('{"host": "b", "name": 7}')
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.sharing.run)
        [file] = await a.sharing.known(a.stored, hearsay=False)
        assert str(file.doubt).startswith("perhaps used on host b, whose record of uses makes no")
        async with a.sharing.asked(a.stored, 0.0) as [consent]:
            assert consent.objection == file.doubt
        # It writes it anew when it is asked.
        nursery.start_soon(b.sharing.run)
        await until(lambda: all(each.record for each in a.storage.records()))
        nursery.cancel_scope.cancel()


async def test_a_host_that_never_said_anything_keeps_everything(directory: Path) -> None:
    a = Node(directory, "a")
    await a.sharing.start()
    old = SharedDirectoryStorage("default", directory, "old")
    old.prepare()
    old.partial_path(CONTENT).write_bytes(b"x")
    old.close()
    [file] = await a.sharing.known(a.stored, hearsay=False)
    assert "start ddfs there, or if it is gone for good: ddfs forget old" in str(file.doubt)
    a.storage.forget("old")
    [file] = await a.sharing.known(a.stored, hearsay=False)
    assert file.doubt is None
    assert not old.partial_dir.exists()
