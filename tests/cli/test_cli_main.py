"""The entry point: mistakes, signals, pipes, and how fast it is there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddfs import errors
from ddfs.cli import main
from ddfs.cli.text import format_seconds, format_size, one_line
from ddfs.control.messages import TemplateStatus
from tests.cli.conftest import Ddfs
from tests.control.fake import FakeService, RunningDaemon

PROGRAM = [sys.executable, "-c", "from ddfs.cli.main import main; main()"]

COMMANDS = [
    *("serve", "fetch", "prefetch", "status", "cancel", "start", "limits", "doctor"),
    *("template add", "template list", "template show", "template remove"),
    *("pool define", "pool refresh", "pool undefine"),
    *("metalink make", "metalink show", "config show"),
]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["template"],
        ["template", "nosuch"],
        ["template", "add", "only-a-name"],
        ["prefetch"],
        ["status", "--nosuch"],
        ["metalink", "make", "f", "--url", "u", "--piece-length", "many"],
        ["--config"],
        ["fetch"],
        ["fetch", "a", "b"],
        ["fetch", "a", "-o"],
    ],
)
def test_wrong_usage_is_one_line(ddfs: Ddfs, arguments: list[str]) -> None:
    done = ddfs(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("ddfs: ")
    assert done.err.count("\n") == 1
    assert "--help" in done.err


def test_no_daemon(ddfs: Ddfs, tmp_path: Path) -> None:
    done = ddfs("status")
    assert done.code == errors.EXIT_HOST
    assert done.err == (
        f"ddfs: no daemon answers at {tmp_path}/ddfs.sock; start it with: ddfs serve\n"
    )


def test_config_may_stand_anywhere(ddfs: Ddfs, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("nosuchkey = 1\n")
    for arguments in (
        ["--config", str(bad), "status"],
        ["status", f"--config={bad}", "--json"],
        ["template", "list", "--config", str(bad)],
        ["fetch", "--config", str(bad), "https://example.org/a"],
    ):
        done = ddfs(*arguments)
        assert done.code == errors.EXIT_REQUEST
        assert done.err.startswith(f"ddfs: {bad}: nosuchkey: unknown key")
    assert main.hoist_config(["a", "--", "--config", "b"]) == ["a", "--", "--config", "b"]


def test_config_show_has_the_keys_and_values_of_the_file(ddfs: Ddfs, settings_file: Path) -> None:
    text = settings_file.read_text()
    more = '[host.far]\nsocket = "/far"\n[primary.more]\npath = "/more"\nquota = "80%"\n'
    settings_file.write_text(f'{text}\n{more}[network]\nallow_networks = ["10.0.0.0/8"]\n')
    fields = dict(line.split(maxsplit=1) for line in ddfs("config", "show").out.splitlines())
    assert fields["host.far.socket"] == "/far"
    assert fields["primary.more.quota"] == "80%"
    assert fields["network.allow_networks"] == '["10.0.0.0/8"]'


def test_config_show(ddfs: Ddfs, settings_file: Path, tmp_path: Path) -> None:
    out = ddfs("config", "show").out
    fields = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert fields["file"] == str(settings_file)
    assert fields["socket"] == f"{tmp_path}/ddfs.sock"
    assert fields["network.connections_per_host"] == "16"
    assert (fields["primary.default.shared"], fields["network.allow_networks"]) == ("false", "[]")
    shown = json.loads(ddfs("config", "show", "--json").out)
    assert shown["primary"]["default"]["path"] == str(tmp_path)
    assert shown["gate"] == {"wait": 10.0, "then": "refuse"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(ddfs: Ddfs, command: str) -> None:
    done = ddfs(*command.split(), "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Example: ddfs {command.split()[0]}" in done.out
    assert len(done.out.splitlines()) > 5


def test_help_lists_every_command(ddfs: Ddfs) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        out = ddfs(*arguments).out
        for command in COMMANDS:
            assert f"\n  {command.split()[0]} " in out


def test_version(ddfs: Ddfs) -> None:
    assert ddfs("--version").out == ddfs("--version", "status").out == "ddfs 0.1.0\n"


def test_only_foreseen_errors_in_groups_become_lines(
    ddfs: Ddfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = []

    def dispatch(_arguments: list[str]) -> int:
        raise raised[0]

    monkeypatch.setattr(main, "_dispatch", dispatch)
    inner = ExceptionGroup("inner", [errors.StorageFullError("no room")])
    raised[:] = [ExceptionGroup("outer", [inner])]
    assert ddfs("x").err == "ddfs: no room\n"
    raised[:] = [BaseExceptionGroup("outer", [inner, KeyboardInterrupt()])]
    assert ddfs("x").code == 130
    raised[:] = [ExceptionGroup("outer", [inner, ZeroDivisionError()])]
    with pytest.raises(ExceptionGroup):
        ddfs("x")


def test_a_reader_that_goes_away_is_no_matter(
    daemon: RunningDaemon, service: FakeService, settings_file: Path
) -> None:
    for number in range(3000):
        service.known[f"t{number}"] = service.known["alpine"]
    process = subprocess.Popen(
        [*PROGRAM, "--config", str(settings_file), "template", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"NAME")
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(90) == 141


@pytest.mark.parametrize(
    "command", [["config", "show"], ["--version"], ["config", "show", "--json"]]
)
def test_a_full_or_closed_standard_output(settings_file: Path, command: list[str]) -> None:
    words = " ".join([*command, "--config", str(settings_file)] if len(command) > 1 else command)
    program = f"{sys.executable} -c 'from ddfs.cli.main import main; main()' {words}"
    full = subprocess.run(["sh", "-c", f"{program} >/dev/full"], capture_output=True, timeout=90)
    assert full.stderr == b"ddfs: standard output: no room for more\n"
    assert full.returncode == errors.EXIT_HOST
    closed = subprocess.run(["sh", "-c", f"{program} >&-"], capture_output=True, timeout=90)
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_an_interrupt_is_quiet(
    daemon: RunningDaemon, service: FakeService, settings_file: Path
) -> None:
    looks: list[str] = []

    def stand_still(status: TemplateStatus) -> TemplateStatus:
        looks.append(status.state)
        return status

    service._move_on = stand_still  # type: ignore[method-assign]
    for command, says in (
        (["prefetch", "alpine"], b"the fetch goes on; end it with: ddfs cancel alpine"),
        (["status", "--watch", "--json"], b""),
    ):
        process = subprocess.Popen(
            [*PROGRAM, "--config", str(settings_file), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A shell in the background makes its children ignore the signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            if says:
                # Two looks at it while it is fetched: the command waits by now.
                while looks.count("downloading") < 2:
                    assert process.poll() is None
                    time.sleep(0.01)
            else:
                assert process.stdout is not None
                assert json.loads(process.stdout.readline())["daemon"]
            # It may be anywhere between two looks by now, and must be quiet everywhere.
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=90)
            assert process.returncode == 130
            assert b"Traceback" not in err
            assert err == (b"ddfs: " + says + b"\n" if says else b"")
        finally:
            process.kill()
            process.communicate()


def test_bars_on_a_terminal(daemon: RunningDaemon, settings_file: Path) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "--config", str(settings_file), "prefetch", "alpine"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 4096):
            seen += data
    except OSError:
        # What a terminal says when nobody has it open any more.
        pass
    os.close(ours)
    out, _ = process.communicate(timeout=90)
    assert out == b"alpine.qcow2: here, 1000 B, /images/alpine\n"
    assert b"alpine.qcow2" in seen
    assert b"100" in seen


def test_completion_knows_templates(daemon: RunningDaemon, settings_file: Path) -> None:
    environment = {
        **os.environ,
        "DDFS_CONFIG": str(settings_file),
        "_DDFS_COMPLETE": "complete_bash",
        "COMP_WORDS": "ddfs prefetch deb",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, timeout=90)
    assert done.stdout.split() == ["debian-12"]


def imported_by(*arguments: str) -> set[str]:
    program = (
        "import sys\nfrom ddfs.cli import main\n"
        "code = main.run(sys.argv[1:])\nprint(code, *sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    return set(done.stderr.splitlines()[-1].split())


def test_what_is_imported(daemon: RunningDaemon, settings_file: Path) -> None:
    heavy = {"rich", "trio", "httpx", "fastapi", "sqlalchemy", "libvirt", "pyfuse3"}
    assert not imported_by("--version") & {*heavy, "typer", "json", "ddfs.model"}
    # Pydantic is what this Typer itself reads arguments with.
    found = imported_by("--config", str(settings_file), "status")
    assert "0" in found
    assert not found & heavy


def test_no_room_for_the_lock_names_the_state_directory(
    settings_file: Path, tmp_path: Path
) -> None:
    # The limit on a file's size stands for a disk with no byte left: the file can be made,
    # and not be written to.
    command = ["prlimit", "--fsize=0", *PROGRAM, "--config", str(settings_file), "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout) == (errors.EXIT_HOST, "")
    assert done.stderr.startswith(f"ddfs: {tmp_path}/state: File too large; make room there")
    assert done.stderr.count("\n") == 1


@given(st.text())
def test_one_line(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert one_line(shown) == shown


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1536 * 1024**2, "1.5 GiB"),
        (2**63 - 1, "8.0 EiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert format_size(count) == text


def test_seconds() -> None:
    shown = [format_seconds(value) for value in (None, 0, 59.4, 59.6, 125, 7260)]
    assert shown == ["-", "0 s", "59 s", "1 min 0 s", "2 min 5 s", "2 h 1 min"]
