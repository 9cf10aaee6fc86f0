"""What a service manager hears, over a real socket."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ddfs.notify import Supervisor


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(os.fspath(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def heard(manager: socket.socket) -> list[str]:
    texts = []
    while True:
        try:
            texts.append(manager.recv(4096).decode())
        except BlockingIOError:
            return texts


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def test_it_hears_that_the_daemon_serves_and_that_it_ends(manager: socket.socket) -> None:
    told = Supervisor.of(environment(manager))
    told.ready("/srv/ddfs/templates, 3 templates")
    told.stopping()
    assert heard(manager) == [
        "READY=1\nSTATUS=/srv/ddfs/templates, 3 templates",
        "STOPPING=1\nSTATUS=ending",
    ]


def test_a_name_without_a_path() -> None:
    name = f"ddfs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.setblocking(False)
        Supervisor.of({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        assert heard(sock)


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/nowhere/at/all"])
def test_nobody_who_can_be_told_is_no_error(address: str) -> None:
    Supervisor.of({"NOTIFY_SOCKET": address}).ready("x")


async def test_the_watchdog_is_fed_while_the_loop_runs_and_starves_when_it_is_frozen(
    manager: socket.socket,
) -> None:
    told = Supervisor.of(environment(manager, WATCHDOG_USEC="300000"))
    async with trio.open_nursery() as nursery:
        await nursery.start(told.keep_awake)
        with trio.fail_after(90):
            while len(heard(manager)) < 1:
                await trio.sleep(0.01)
            while len(heard(manager)) < 1:
                await trio.sleep(0.01)
        heard(manager)
        time.sleep(0.5)  # noqa: ASYNC251 -- this is the frozen loop
        assert heard(manager) == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"WATCHDOG_USEC": "300000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
    ],
)
async def test_nobody_is_fed_who_does_not_watch(
    manager: socket.socket, more: dict[str, str]
) -> None:
    told = Supervisor.of(environment(manager, **more))
    with trio.fail_after(90):
        await told.keep_awake()
    assert heard(manager) == []
