"""Errors and messages on their way through the socket; a daemon that is not there."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddfs import errors
from ddfs.control import problems
from ddfs.control.client import Client, _encoded
from ddfs.control.decode import decode
from ddfs.control.deploy_messages import Deploy
from ddfs.control.messages import AddTemplate, GateQuestion, Names, TemplateStatus
from tests.control.fake import FakeService, make_status, running


def classes(parent: type[errors.DdfsError]) -> list[type[errors.DdfsError]]:
    return [c for child in parent.__subclasses__() for c in (child, *classes(child))]


def make_error(error_class: type[errors.DdfsError]) -> errors.DdfsError:
    mirror = errors.MirrorError("https://m.example.org/a b: c", "status 404: gone")
    if error_class is errors.MirrorError:
        return errors.MirrorError("https://m.example.org:80/a?b=c", "status 404: gone")
    if error_class is errors.MirrorsExhaustedError:
        return errors.MirrorsExhaustedError("every mirror failed", (mirror, mirror))
    return error_class("what happened, to “what”: do this")


def test_kinds_are_unique() -> None:
    kinds = [found.kind() for found in classes(errors.DdfsError)]
    assert len(kinds) == len(set(kinds))
    assert problems.INTERNAL not in kinds


@pytest.mark.parametrize("error_class", classes(errors.DdfsError), ids=lambda c: c.__name__)
def test_every_error_comes_back(
    error_class: type[errors.DdfsError], daemon_of_errors: tuple[FakeService, Client]
) -> None:
    service, client = daemon_of_errors
    service.raises = make_error(error_class)
    with pytest.raises(errors.DdfsError) as caught:
        client.daemon_status()
    assert type(caught.value) is error_class
    assert str(caught.value) == str(service.raises)
    assert caught.value.exit_code == error_class.exit_code


@pytest.fixture(scope="module")
def daemon_of_errors(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[FakeService, Client]]:
    service = FakeService()
    with running(service, tmp_path_factory.mktemp("errors")) as daemon:
        yield service, Client(daemon.path, daemon.reader_path)


def test_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "ddfs.sock"
    with pytest.raises(errors.DaemonDownError) as caught:
        Client(path, tmp_path / "ro").templates()
    assert str(caught.value) == f"no daemon answers at {path}; start it with: ddfs serve"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(errors.DaemonDownError, match="no daemon answers at"):
        Client(path, tmp_path / "ro").gate(GateQuestion("vm", ()))


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Something that is not ddfs, for one request."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=run)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe",
        b"HTTP/1.1 502 Bad\r\ncontent-length: 3\r\n\r\n<p>",
    ],
)
def test_whatever_else_answers_is_one_clear_error(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "ddfs.sock"
    with answering(path, answer), pytest.raises(errors.DaemonDownError) as caught:
        Client(path, tmp_path / "ro").daemon_status()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_redirect_is_no_success(tmp_path: Path) -> None:
    path = tmp_path / "ddfs.sock"
    answer = b"HTTP/1.1 307 \r\nlocation: /v1/templates\r\ncontent-length: 0\r\n\r\n"
    with answering(path, answer), pytest.raises(errors.DaemonDownError):
        Client(path, tmp_path / "ro").remove_template("", purge=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_others_may_read() -> None:
    program = (
        "import os, sys, pathlib; from ddfs.control.client import Client; from ddfs import errors\n"
        "client = Client(*map(pathlib.Path, sys.argv[1:])); client.template('a')\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(client.template('a').name)\n"
        "try: client.prefetch(['a'])\n"
        "except errors.DaemonDownError as error: print(error)\n"
    )
    # pytest's own directories are closed to others.
    with tempfile.TemporaryDirectory() as directory:
        with running(FakeService("a"), Path(directory) / "open") as daemon:
            Path(directory).chmod(0o755)
            command = [sys.executable, "-c", program, str(daemon.path), str(daemon.reader_path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    lines = done.stdout.splitlines()
    assert lines == ["a", f"{daemon.path} may not be used by this user: run it as root"]


def test_messages_survive_the_wire() -> None:
    status = make_status("a", seconds_left=3, retry_in=1.5)
    wire = json.loads(json.dumps(dataclasses.asdict(status)))
    again = decode(TemplateStatus, wire)
    assert again == status
    assert isinstance(again.seconds_left, float)
    # A newer daemon says more, an older one less.
    wire["new_key"] = 1
    del wire["mirrors"]
    assert decode(TemplateStatus, wire) == dataclasses.replace(status, mirrors=())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": "1"}, r"answer\.size: int was expected, not '1'"),
        ({"size": 1.5}, r"answer\.size: int was expected"),
        ({"size": True}, r"answer\.size: int was expected, not 'True'"),
        ({"head_is_verified": 1}, r"answer\.head_is_verified: bool was expected"),
        ({"mirrors": {}}, r"answer\.mirrors: a list was expected"),
        ({"mirrors": [{}]}, r"answer\.mirrors\[0\]\.url is missing"),
        ({"name": None}, r"answer\.name: str was expected, not 'None'"),
    ],
)
def test_wrong_messages_say_where(change: dict[str, object], says: str) -> None:
    wire = dataclasses.asdict(make_status("a")) | change
    with pytest.raises(ValueError, match=says):
        decode(TemplateStatus, json.loads(json.dumps(wire)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(json_values, st.sampled_from([f.name for f in dataclasses.fields(TemplateStatus)]))
def test_decoding_anything_is_a_message_or_a_value_error(value: object, key: str) -> None:
    for wire in (value, [value], dataclasses.asdict(make_status("a")) | {key: value}):
        try:
            outcome: object = decode(TemplateStatus, wire)
        except ValueError as error:
            outcome = str(error)
        assert isinstance(outcome, TemplateStatus) or str(outcome).startswith("answer")


def test_an_older_daemon_sees_no_key_that_says_nothing() -> None:
    sent = json.loads(_encoded(Deploy("t", "vm", vcpus=2)))
    assert sent == {"template": "t", "name": "vm", "vcpus": 2}
    sent = json.loads(_encoded(AddTemplate("t", "/s", headers=("A: b",), no_keyring=True)))
    assert sent == {"name": "t", "source": "/s", "headers": ["A: b"], "no_keyring": True}
    assert json.loads(_encoded(Names(("a",)))) == {"names": ["a"]}


def test_the_client_imports_nothing_heavy() -> None:
    program = (
        "import sys, ddfs.control.client\n"
        "heavy = {'fastapi', 'pydantic', 'hypercorn', 'starlette', 'httpx', 'trio', 'asyncio',\n"
        "         'rich', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
