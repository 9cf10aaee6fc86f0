"""The two sockets: made, taken over, guarded, and gone at the end."""

from __future__ import annotations

import grp
import os
import socket
import stat
import time
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from ddfs import errors
from ddfs.control.client import Client
from ddfs.control.messages import GateQuestion
from ddfs.control.server import MAX_READER_CONNECTIONS, serve
from ddfs.control.sockets import listening
from tests.control.fake import FakeService, running

# "Prompt" in the design is less than this.
# Soon, on a busy machine too; not only when who asks goes away by himself.
PROMPT_SECONDS = 30.0


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_modes_and_removal(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "ddfs"
    before = os.umask(0o077)
    try:
        with running(FakeService(), directory) as daemon:
            assert mode_of(daemon.path) == 0o660
            assert mode_of(daemon.reader_path) == 0o666
    finally:
        os.umask(before)
    assert list(directory.iterdir()) == []


def test_a_dead_daemons_socket_is_replaced(tmp_path: Path) -> None:
    for name in ("ddfs.sock", "ddfs-ro.sock"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / name))
    with running(FakeService("a"), tmp_path) as daemon:
        assert Client(daemon.path, daemon.reader_path).daemon_status().total == 1


def test_a_live_daemon_keeps_its_socket(tmp_path: Path) -> None:
    with running(FakeService("a"), tmp_path) as daemon:
        with pytest.raises(errors.AlreadyRunningError, match="a daemon answers there already"):
            with running(FakeService(), tmp_path):
                pass
        assert Client(daemon.path, daemon.reader_path).daemon_status().total == 1


def test_a_live_reader_socket_takes_nothing_else_down(tmp_path: Path) -> None:
    reader = tmp_path / "ddfs-ro.sock"
    with listening(reader, 0o666):
        with pytest.raises(errors.AlreadyRunningError):
            with running(FakeService(), tmp_path):
                pass
        assert [path.name for path in tmp_path.iterdir()] == ["ddfs-ro.sock"]


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ddfs.sock"
    if kind == "file":
        path.write_text("mine")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/nowhere")
    before = path.lstat()
    with pytest.raises(errors.ConfigError, match="is in the way and no socket"):
        with running(FakeService(), tmp_path):
            pass
    assert path.lstat() == before


def test_a_path_that_cannot_be_says_so(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="AF_UNIX path too long"):
        with listening(tmp_path / ("x" * 120), 0o660):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.ConfigError, match="no socket can be made there"):
        with listening(tmp_path / "file" / "ddfs.sock", 0o660):
            pass


def test_another_daemons_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "ddfs.sock"
    with listening(path, 0o660):
        path.unlink()
        with listening(path, 0o660):
            successor = path.lstat()
            path.rename(tmp_path / "aside")
            (tmp_path / "aside").rename(path)
    assert not path.exists()
    with listening(path, 0o660):
        path.unlink()
        path.write_text("another's")
        successor = path.lstat()
    assert path.lstat() == successor


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(90)
    sock.connect(str(path))
    return sock


async def test_a_waiting_gate_does_not_hold_the_end(tmp_path: Path) -> None:
    service = FakeService("a")
    service.gate_seconds = 3600
    path, reader_path = tmp_path / "s", tmp_path / "r"
    answers: list[str] = []

    def ask() -> None:
        try:
            Client(path, reader_path).gate(GateQuestion("vm", ()))
        except errors.DaemonDownError as error:
            answers.append(str(error))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as server:
            await server.start(
                lambda task_status: serve(service, path, reader_path, task_status=task_status)
            )
            nursery.start_soon(trio.to_thread.run_sync, ask)
            with trio.fail_after(90):
                while not service.asked:
                    await trio.sleep(0.01)
            began = time.monotonic()
            server.cancel_scope.cancel()
        assert time.monotonic() - began < PROMPT_SECONDS
    assert len(answers) == 1
    assert "ended while it was asked" in answers[0]
    assert os.listdir(tmp_path) == []


async def test_a_client_that_does_not_read_does_not_hold_the_end(tmp_path: Path) -> None:
    service = FakeService(*(f"t{i}" for i in range(3000)))
    path, reader_path = tmp_path / "s", tmp_path / "r"
    async with trio.open_nursery() as server:
        await server.start(
            lambda task_status: serve(service, path, reader_path, task_status=task_status)
        )
        with connect(reader_path) as greedy, connect(path):
            greedy.sendall(b"GET /v1/templates HTTP/1.1\r\nhost: x\r\n\r\n")
            # The answer has begun, and is far larger than the socket's buffer.
            assert await trio.to_thread.run_sync(greedy.recv, 12) == b"HTTP/1.1 200"
            await trio.sleep(0.1)
            began = time.monotonic()
            server.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
    assert time.monotonic() - began < PROMPT_SECONDS


async def test_hanging_up_and_garbage_leave_the_server_alone(tmp_path: Path) -> None:
    service = FakeService("a")
    service.gate_seconds = 0.05
    path, reader_path = tmp_path / "s", tmp_path / "r"
    async with trio.open_nursery() as server:
        await server.start(
            lambda task_status: serve(service, path, reader_path, task_status=task_status)
        )
        for data in (
            b"",
            b"\0\xff garbage\r\n\r\n",
            b"GET /v1/status HTTP/1.1\r\nhost: x\r\n",
            b"POST /gate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
            b'POST /gate HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n{"domain": "a"}',
            b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        ):
            sock = connect(path)
            sock.sendall(data)
            await trio.sleep(0.02)
            sock.close()
        await trio.sleep(0.2)
        client = Client(path, reader_path)
        status = await trio.to_thread.run_sync(client.daemon_status)
        assert status.total == 1
        server.cancel_scope.cancel()


async def test_the_reader_socket_has_bounded_connections(tmp_path: Path) -> None:
    path, reader_path = tmp_path / "s", tmp_path / "r"
    async with trio.open_nursery() as server:
        await server.start(
            lambda task_status: serve(FakeService("a"), path, reader_path, task_status=task_status)
        )
        held = [connect(reader_path) for _ in range(MAX_READER_CONNECTIONS)]
        await trio.sleep(0.1)
        with connect(reader_path) as refused:
            assert await trio.to_thread.run_sync(refused.recv, 1) == b""
        client = Client(path, reader_path)
        assert (await trio.to_thread.run_sync(client.daemon_status)).total == 1
        for sock in held:
            sock.close()
        server.cancel_scope.cancel()


def test_the_socket_belongs_to_the_group_that_may_use_it(tmp_path: Path) -> None:
    path = tmp_path / "ddfs.sock"
    name = grp.getgrall()[-1].gr_name
    if os.geteuid() != 0:
        name = grp.getgrgid(os.getegid()).gr_name
    with listening(path, 0o660, name):
        assert path.group() == name
        assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(errors.ConfigError, match="no group 'no-such-group'; make it with"):
        with listening(path, 0o660, "no-such-group"):
            pass
    assert not path.exists()


def test_a_deployment_whose_caller_hangs_up_is_cancelled(tmp_path: Path) -> None:
    service = FakeService("a")
    service.deploying.is_slow = True
    with running(service, tmp_path) as daemon:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(daemon.path))
            body = b'{"template": "a", "name": "vm1"}'
            caller.sendall(
                b"POST /v1/deployments HTTP/1.1\r\nhost: ddfs\r\ncontent-length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            assert service.deploying.has_begun.wait(90)
            assert not service.deploying.was_cancelled.is_set()
        assert service.deploying.was_cancelled.wait(90)
    assert service.deploying.deployed == []
