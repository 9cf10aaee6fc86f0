"""A daemon that is a fake behind the real API, and `ddfs` in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ddfs.cli import main
from tests.control.fake import FakeService, RunningDaemon, running


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Ddfs = Callable[..., Outcome]


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "ddfs.toml"
    path.write_text(
        f'mountpoint = "/srv/ddfs"\nstate_dir = "{tmp_path}/state"\n'
        f'socket = "{tmp_path}/ddfs.sock"\n'
        f'[primary.default]\npath = "{tmp_path}"\n'
    )
    return path


@pytest.fixture
def ddfs(
    settings_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Ddfs:
    monkeypatch.setenv("DDFS_CONFIG", str(settings_file))

    def run(*arguments: str) -> Outcome:
        code = main.run(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def service() -> FakeService:
    return FakeService("debian-12", "alpine", "old.iso")


@pytest.fixture
def daemon(service: FakeService, tmp_path: Path, settings_file: Path) -> Iterator[RunningDaemon]:
    with running(service, tmp_path) as found:
        yield found
