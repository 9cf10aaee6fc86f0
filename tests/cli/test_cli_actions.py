"""Commands about domains and disks, against the real API over a fake service."""

import io
import json
import sys
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.cli.disks import parse_size
from tests.cli.conftest import Ddfs
from tests.control.fake import FakeService, RunningDaemon

pytestmark = pytest.mark.usefixtures("daemon")


def test_attach_fetches_first(ddfs: Ddfs, service: FakeService) -> None:
    done = ddfs("attach", "vm 1", "debian-12.qcow2", "sdc", "--persistent")
    assert done.code == 0, done.err
    assert "is the medium at sdc" in done.out
    ((domain, request),) = service.actions.attached
    assert (domain, request.template, request.persistent) == ("vm 1", "debian-12", True)
    assert "read-only disk" in ddfs("attach", "vm1", "debian-12", "vdb").out


def test_attach_says_why_the_fetch_failed(ddfs: Ddfs, service: FakeService) -> None:
    service.failing["alpine"] = "no mirror answers"
    done = ddfs("attach", "vm1", "alpine", "vdb")
    assert done.code == errors.EXIT_NOT_READY
    assert "no mirror answers" in done.err
    assert service.actions.attached == []


@pytest.mark.parametrize("domain", ["", "a/b"])
def test_names_that_no_domain_has(ddfs: Ddfs, domain: str) -> None:
    for words in (["attach", domain, "alpine", "vdb"], ["autostart", "enable", domain]):
        done = ddfs(*words)
        assert (done.code, done.err.count("\n")) == (errors.EXIT_REQUEST, 1)


def test_clone_makes_an_overlay_without_fetching(ddfs: Ddfs, service: FakeService) -> None:
    done = ddfs("clone", "alpine", "disk 'ü'.qcow2", "--size", "20G", "--pool", "vms")
    assert done.code == 0, done.err
    assert "overlay on alpine, qcow2, 20.0 GiB" in done.out
    (request,) = service.actions.cloned
    assert (request.volume, request.size, request.pool) == ("disk 'ü'.qcow2", 20 * 1024**3, "vms")
    assert service.known["alpine"].state == "not-downloaded"


def test_a_full_clone_fetches_first(ddfs: Ddfs, service: FakeService) -> None:
    done = ddfs("clone", "alpine", "vm1.qcow2", "--full", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["how"] == "reflink"
    assert service.known["alpine"].state == "downloaded"


def test_clone_replaces_only_when_told(ddfs: Ddfs) -> None:
    assert ddfs("clone", "alpine", "vm1.qcow2").code == 0
    taken = ddfs("clone", "alpine", "vm1.qcow2")
    assert (taken.code, taken.err) == (4, "ddfs: vm1.qcow2 is there already\n")
    assert "made anew" in ddfs("clone", "alpine", "vm1.qcow2", "--replace").out


@pytest.mark.parametrize(
    ("text", "size"),
    [("20G", 20 * 1024**3), ("512 MiB", 512 * 1024**2), ("4096", 4096), ("1tb", 1024**4)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "0", "20X", "²", "9" * 30])
def test_what_is_no_size(ddfs: Ddfs, text: str) -> None:
    done = ddfs("clone", "alpine", "vm1.qcow2", f"--size={text}")
    assert done.code == errors.EXIT_REQUEST
    assert "no size" in done.err


def test_gate_has_the_exit_code_of_the_hook(ddfs: Ddfs, service: FakeService) -> None:
    refused = ddfs("gate", "--domain", "vm1")
    assert refused.code == 1
    assert "vm1 may not start: " in refused.out
    assert "not-downloaded, 40 % here, about 1 min 15 s left" in refused.out
    ddfs("prefetch", "debian-12", "alpine", "old.iso")
    allowed = ddfs("gate", "--domain", "vm1", "--json")
    assert allowed.code == 0
    assert json.loads(allowed.out)["allowed"] is True


def test_gate_reads_a_file_or_standard_input(
    ddfs: Ddfs, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xml = tmp_path / "vm ü.xml"
    xml.write_text("<domain/>")
    ddfs("gate", "--xml", str(xml))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"<domain>2</domain>")))
    ddfs("gate", "--xml", "-")
    assert [question.xml for question in service.actions.explained] == [
        "<domain/>",
        "<domain>2</domain>",
    ]


def test_gate_is_given_one_of_both(ddfs: Ddfs, tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for words in (
        [],
        ["--domain", "a", "--xml", "b"],
        ["--xml", str(tmp_path / "missing")],
        ["--xml", str(binary)],
    ):
        done = ddfs("gate", *words)
        assert (done.code, done.err.count("\n")) == (errors.EXIT_REQUEST, 1)


def test_autostart_marks_and_lists(ddfs: Ddfs) -> None:
    assert ddfs("autostart", "enable", "vm1").code == 0
    assert ddfs("autostart", "list").out.splitlines()[1].split() == ["vm1", "off"]
    assert ddfs("autostart", "disable", "vm1").code == 0
    assert json.loads(ddfs("autostart", "list", "--json").out) == []


def test_autostart_starts_what_is_off_once_its_templates_are_here(
    ddfs: Ddfs, service: FakeService
) -> None:
    service.actions.marked = {"vm1": False, "vm2": True, "vm3": False}
    done = ddfs("autostart", "run", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said == {"started": service.started, "failed": {}}
    assert sorted(service.started) == ["vm1", "vm3"]


def test_autostart_goes_on_with_the_others(ddfs: Ddfs, service: FakeService) -> None:
    service.actions.marked = {"nobody": False, "vm1": False}
    done = ddfs("autostart", "run")
    assert done.code == errors.EXIT_HOST
    assert "ddfs: nobody: no domain called 'nobody'" in done.err
    assert service.started == ["vm1"]


def test_autostart_gives_up_in_time(ddfs: Ddfs, service: FakeService) -> None:
    service.actions.marked = {"vm1": False}
    service.failing["alpine"] = "no network"
    done = ddfs("autostart", "run", "--timeout", "0.5")
    assert done.code == errors.EXIT_NOT_READY
    assert "did not come in time" in done.err
    assert service.started == []


def test_autostart_without_a_daemon(ddfs: Ddfs, daemon: RunningDaemon) -> None:
    daemon.stop()
    done = ddfs("autostart", "run", "--timeout", "0")
    assert done.code == errors.EXIT_HOST
    assert "ddfs serve" in done.err
