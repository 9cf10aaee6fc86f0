"""What doctor looks at outside of ddfs."""

import http.server
import os
import pwd
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddfs.cli import doctor, doctor_host


def user(uid: int = 4242, gid: int = 4242) -> pwd.struct_passwd:
    return pwd.struct_passwd(("nobody-here", "x", uid, gid, "", "/", "/bin/false"))


def test_a_closed_directory_is_named(tmp_path: Path) -> None:
    top = Path("/tmp") / f"ddfs-doctor-{os.getpid()}"
    inner = top / "closed" / "images"
    inner.mkdir(parents=True)
    try:
        for directory in (top, top / "closed", inner):
            directory.chmod(0o755)
        assert doctor_host.closed_directory(inner, user()) is None
        (top / "closed").chmod(0o750)
        assert doctor_host.closed_directory(inner, user()) == top / "closed"
        assert doctor_host.closed_directory(inner, user(uid=0)) is None
        assert doctor_host.closed_directory(inner, user(gid=os.getgid())) is None
        missing = inner / "gone"
        (top / "closed").chmod(0o755)
        assert doctor_host.closed_directory(missing, user()) == missing
    finally:
        inner.rmdir()
        (top / "closed").rmdir()
        top.rmdir()


def test_the_user_is_the_one_in_qemu_conf(tmp_path: Path) -> None:
    conf = tmp_path / "qemu.conf"
    conf.write_text('#user = "daemon"\nuser = "+0"\n')
    found = doctor_host.qemu_user(conf)
    assert found is not None
    assert found.pw_uid == 0


def test_a_process_knows_when_it_was_started() -> None:
    moment = doctor_host.started_at(os.getpid())
    assert moment is not None
    assert time.time() - 3600 < moment <= time.time() + 2
    assert doctor_host.started_at(2**22 + 1) is None


def test_servers_are_asked_once_and_without_passwords() -> None:
    addresses = [
        "https://user:secret@a.example:8443/x", "https://a.example:8443/y", "/a/path",
        "http://b.example/z", "nfs://c.example/w",
    ]  # fmt: skip
    assert doctor_host.servers_of(addresses) == ["https://a.example:8443", "http://b.example"]


class Late(http.server.BaseHTTPRequestHandler):
    """Its clock is an hour ahead."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() + 3600)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def late_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Late)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_mirror_that_is_down_and_a_clock_that_is_wrong_are_named(
    late_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    closed = "http://127.0.0.1:1"
    found = {finding.check: finding for finding in doctor.mirrors([late_server, closed])}
    assert found[f"mirror {late_server}"].level == doctor.OK
    assert found[f"mirror {closed}"].level == doctor.WARN
    assert "refused" in found[f"mirror {closed}"].text
    assert found["clock"].level == doctor.WARN
    assert "slow" in found["clock"].text
    assert list(doctor.mirrors([])) == []
    monkeypatch.setenv("https_proxy", "http://p")
    assert [finding.level for finding in doctor.mirrors([late_server])] == [doctor.OK]
