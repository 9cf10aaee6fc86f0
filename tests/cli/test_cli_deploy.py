"""``ddfs deploy`` against the real API over fake hosts."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.cli import main
from ddfs.control.messages import AddTemplate
from ddfs.model import MiB
from tests.cli.conftest import Ddfs
from tests.control.fake import FakeService, RunningDaemon, make_status, running

pytestmark = pytest.mark.usefixtures("daemon")


def test_deploy_fetches_first_and_says_where_it_runs(
    ddfs: Ddfs, service: FakeService, tmp_path: Path
) -> None:
    (tmp_path / "user-data").write_text("#cloud-config\n")
    words = ["--memory", "2G", "--user-data", str(tmp_path / "user-data")]
    done = ddfs("deploy", "debian-12", "--name", "vm1", *words)
    assert done.code == 0, done.err
    assert done.out == "vm1: runs on this host, from debian-12; its disk is /pool/vm1.qcow2\n"
    (request,) = service.deploying.deployed
    assert (request.memory_mib, request.user_data) == (2048, "#cloud-config\n")
    assert service.known["debian-12"].state == "downloaded"
    assert service.deploying.confirmed == [request.token]


@pytest.mark.parametrize("option", ["--user-data", "--xml"])
def test_deploy_reads_no_more_of_a_file_than_a_host_takes(
    ddfs: Ddfs, service: FakeService, tmp_path: Path, option: str
) -> None:
    """What never ends (/dev/zero) would take all memory of the host."""
    large = tmp_path / "large"
    large.write_text("x" * (MiB + 1))
    done = ddfs("deploy", "debian-12", "--name", "vm1", option, str(large))
    assert (done.code, done.out) == (errors.EXIT_REQUEST, "")
    assert done.err == f"ddfs: {large}: {option} takes up to 1 MiB\n"
    assert service.deploying.deployed == []


def test_deploy_takes_a_failed_download_back(ddfs: Ddfs, service: FakeService) -> None:
    service.failing["alpine"] = "no mirror answers"
    done = ddfs("deploy", "alpine", "--name", "vm1")
    assert done.code == errors.EXIT_HOST
    assert done.err.splitlines()[-1].startswith("ddfs: vm1 runs nowhere: this host: ")
    assert "no mirror answers" in done.err
    assert service.deploying.deployed == []
    assert service.deploying.discarded == ["alpine@1"]


def test_deploy_asks_before_it_does_anything(ddfs: Ddfs, service: FakeService) -> None:
    service.deploying.obstacle = "1 MiB of memory are free, 1152 are needed"
    done = ddfs("deploy", "alpine", "--name", "vm1")
    assert (done.code, done.out) == (errors.EXIT_HOST, "")
    assert "1152 are needed" in done.err
    assert service.known["alpine"].state == "not-downloaded"


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["--host", "nowhere"],
            ["--memory", "much"],
            ["--memory", "1"],
            ["--xml", "/no/such/file"],
        ),
        *(["--name", "a b"], ["--name", "Grüße"], ["--vcpus", "0"]),
    ],
)
def test_deploy_with_wrong_words(ddfs: Ddfs, words: list[str]) -> None:
    done = ddfs("deploy", "alpine", "--name", "vm1", *words)
    assert (done.code, done.err.count("\n")) == (errors.EXIT_REQUEST, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_the_like_wait_until_it_is_taken_back(
    ddfs: Ddfs, service: FakeService, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    service.deploying.is_slow = True

    def interrupt() -> None:
        if service.deploying.has_begun.wait(90):
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    done = ddfs("deploy", "debian-12", "--name", "vm1")
    thread.join()
    assert done.code == main.EXIT_INTERRUPTED
    assert done.err == "ddfs: this host: vm1 was taken back\n"
    assert len(service.deploying.withdrawn) >= 1
    assert service.deploying.confirmed == []
    assert signal.getsignal(number) == before


# -- a host that does not know the template ------------------------------------------------


@pytest.fixture
def far(tmp_path: Path, settings_file: Path, service: FakeService) -> Iterator[FakeService]:
    """Another host, ``far``; this one declares debian-12 with a login."""
    there = FakeService()
    there.deploying.knows_template = False
    (tmp_path / "far").mkdir()
    with running(there, tmp_path / "far") as daemon:
        text = settings_file.read_text()
        settings_file.write_text(f'{text}[host.far]\nsocket = "{daemon.path}"\n')
        service.declared = [
            AddTemplate(
                "debian-12", "https://example.org/a.meta4", headers=("X-Key: geheim",),
                checksum="sha-256:" + "ab" * 32,
            )
        ]  # fmt: skip
        yield there


def test_it_is_registered_there_as_here(ddfs: Ddfs, service: FakeService, far: FakeService) -> None:
    done = ddfs("deploy", "debian-12", "--name", "vm1")
    assert done.code == 0, done.err
    assert far.added == service.declared
    assert done.err.startswith("ddfs: far: debian-12 is registered there, with its source and its ")
    assert done.err.endswith("headers as on this host\n")
    assert "geheim" not in done.out + done.err
    assert [request.name for request in far.deploying.deployed] == ["vm1"]
    assert list(far.known) == ["debian-12"]


def test_it_is_forgotten_there_if_it_was_for_nothing(ddfs: Ddfs, far: FakeService) -> None:
    far.failing["debian-12"] = "no mirror answers"
    done = ddfs("deploy", "debian-12", "--name", "vm1")
    assert done.code == errors.EXIT_HOST
    assert "far: debian-12.qcow2: no mirror answers" in done.err
    assert (far.known, far.removed) == ({}, [("debian-12@1", True)])


def test_nothing_is_registered_on_a_host_that_could_not_run_it(
    ddfs: Ddfs, far: FakeService
) -> None:
    far.deploying.obstacle = "1 MiB of memory are free, 1152 are needed"
    assert ddfs("deploy", "debian-12", "--name", "vm1").code == errors.EXIT_HOST
    assert far.added == []


def test_other_content_is_not_deployed(ddfs: Ddfs, service: FakeService, far: FakeService) -> None:
    service.known["debian-12"] = make_status("debian-12", content_id="sha-256:" + "cd" * 32)
    done = ddfs("deploy", "debian-12", "--name", "vm1")
    assert done.code == errors.EXIT_HOST
    assert "its source has changed since it was registered on this host" in done.err
    assert (far.known, far.deploying.deployed) == ({}, [])


def test_files_do_not_travel(ddfs: Ddfs, service: FakeService, far: FakeService) -> None:
    service.declared = [AddTemplate("debian-12", "/srv/a.meta4", ca_file="/etc/ca.pem")]
    far.refusal = "ca_file: /etc/ca.pem: No such file or directory"
    done = ddfs("deploy", "debian-12", "--name", "vm1")
    assert done.code == errors.EXIT_HOST
    assert far.refusal in done.err
    assert "files do not travel (ca_file, source)" in done.err
    assert far.added == []


def test_a_template_that_no_host_knows(ddfs: Ddfs, far: FakeService) -> None:
    done = ddfs("deploy", "nothing", "--name", "vm1")
    assert done.code == errors.EXIT_HOST
    assert "no template is called 'nothing' there, nor on any other host" in done.err


def test_a_connection_that_breaks_at_the_confirmation_is_told(
    ddfs: Ddfs, daemon: RunningDaemon, service: FakeService, settings_file: Path
) -> None:
    """Nobody knows then whether it runs there: the next host must not get it as well."""
    twice = "".join(f'[host.{name}]\nsocket = "{daemon.path}"\n' for name in ("one", "two"))
    settings_file.write_text(settings_file.read_text() + twice)
    service.deploying.on_confirm = daemon.break_off
    done = ddfs("deploy", "debian-12", "--name", "vm1")
    assert (done.code, done.err.count("\n")) == (errors.EXIT_HOST, 1)
    assert "vm1 was started on one, but not confirmed" in done.err
    assert len(service.deploying.deployed) == 1
