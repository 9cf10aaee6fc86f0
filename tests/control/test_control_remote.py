"""The way to a socket over ssh: a real sshd on loopback where there is one."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.control.client import Client
from ddfs.control.remote import reached
from tests.control.fake import FakeService, running

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.mark.parametrize(
    "address",
    ["ssh://", "ssh://host", "ssh://-oProxyCommand=x/s", "ssh://a b/s", "ssh://u@-h/s", "http://h/s",
     "ssh://host:port/s", "ssh://-l@host/s", "relative/path"],
)  # fmt: skip
def test_what_is_no_way_is_refused_before_ssh_sees_it(address: str) -> None:
    with pytest.raises(errors.InvalidValueError, match="is no way to a socket"):
        with reached(address):
            pass


def test_a_path_is_its_own_way() -> None:
    with reached("/run/ddfs/ddfs.sock") as path:
        assert path == Path("/run/ddfs/ddfs.sock")


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that lets us in by a key; ssh is told so by its own configuration."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs openssh-server and openssh-client")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name],
                       check=True)  # fmt: skip
    (tmp_path / "authorized").write_text((tmp_path / "user.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    os.makedirs("/run/sshd", exist_ok=True)
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\n"
        f"AuthorizedKeysFile {tmp_path}/authorized\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin yes\nPidFile none\n"
    )
    # ssh looks into the home of the password database, not $HOME: so a wrapper names the files.
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f"#!/bin/sh\nexec {shutil.which('ssh')} -F none -i {tmp_path}/user "
        f'-oStrictHostKeyChecking=no -oUserKnownHostsFile={tmp_path}/known "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    with subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "sshd_config"],
                          stderr=subprocess.DEVNULL) as server:  # fmt: skip
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
        server.terminate()


def test_a_daemon_behind_ssh(sshd: int, tmp_path: Path) -> None:
    with running(FakeService("debian-12"), tmp_path) as daemon:
        path = daemon.path
        with reached(f"ssh://127.0.0.1:{sshd}{path}") as local:
            assert Client(local, local).template("debian-12").name == "debian-12"
        assert not local.exists()
    with pytest.raises(errors.DaemonDownError, match="or none listens") as caught:
        with reached(f"ssh://127.0.0.1:{sshd}{path}") as local:
            Client(local, local).daemon_status()
    assert f"the daemon at ssh://127.0.0.1:{sshd}{path} " in str(caught.value)


def test_whom_ssh_does_not_let_in(sshd: int, tmp_path: Path) -> None:
    (tmp_path / "authorized").write_text("")
    with pytest.raises(errors.DaemonDownError, match="Permission denied"):
        with reached(f"ssh://127.0.0.1:{sshd}/run/ddfs.sock"):
            pass


def test_where_nobody_listens() -> None:
    if shutil.which("ssh") is None:
        pytest.skip("needs openssh-client")
    with pytest.raises(errors.DaemonDownError, match=r"ssh://127\.0\.0\.1:1/s: .*refused"):
        with reached("ssh://127.0.0.1:1/s"):
            pass


LINGERS = """
import time
from ddfs.control.remote import _running, _until_we_end
with _running([*_until_we_end(), "sleep", "600"], "ssh://host/s") as process:
    print(process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux")
def test_what_is_killed_leaves_no_ssh_behind() -> None:
    with subprocess.Popen([sys.executable, "-c", LINGERS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        # Until it is what it was asked to be, it could not know.
        deadline = time.monotonic() + 30
        while "sleep" not in Path(f"/proc/{child}/comm").read_text():
            assert time.monotonic() < deadline
        process.kill()
    while Path(f"/proc/{child}/stat").exists() and state_of(child) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return "Z"
