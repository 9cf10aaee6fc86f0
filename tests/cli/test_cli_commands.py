"""Commands against the real API with an in-memory service behind it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ddfs import errors
from ddfs.control.client import Client
from ddfs.control.messages import AddTemplate
from ddfs.control.version_messages import Updated, UpdateTemplate
from tests.cli.conftest import Ddfs
from tests.control.fake import FakeService, make_status

pytestmark = pytest.mark.usefixtures("daemon")


def test_add_says_where_it_is(ddfs: Ddfs, service: FakeService) -> None:
    added = ddfs("template", "add", "new", "https://example.org/n.meta4", "--format", "iso")
    assert (added.code, added.err) == (0, "")
    assert added.out == "/srv/ddfs/templates/new.qcow2: 1000 B, not-downloaded\n"
    assert service.known["new"].format == "iso"


def test_add_sends_all_options_and_an_absolute_path(
    ddfs: Ddfs, service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.chdir(str(tmp_path))
    asked: list[AddTemplate] = []

    async def add_template(request: AddTemplate) -> object:
        asked.append(request)
        return make_status(request.name)

    service.add_template = add_template  # type: ignore[method-assign, assignment]
    done = ddfs(
        *("template", "add", "n", "./a.meta4", "--json"),
        *("--checksum", "sha256:00", "--file", "b.img", "--format", "raw"),
        *("--checksum-url", "SUMS", "--signature", "SUMS.gpg", "--keyring", "keys.asc"),
    )
    assert json.loads(done.out)["name"] == "n"
    wanted = AddTemplate("n", f"{tmp_path}/a.meta4", "raw", "sha256:00", "b.img", "SUMS")
    keys = f"{tmp_path}/keys.asc"
    assert asked == [dataclasses.replace(wanted, signature="SUMS.gpg", keyring=keys)]


def test_update_sends_keys_of_its_own_or_none(
    ddfs: Ddfs, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.chdir(str(tmp_path))
    asked: list[UpdateTemplate] = []

    def update(_client: Client, name: str, request: UpdateTemplate) -> Updated:
        asked.append(request)
        return Updated(make_status(name), is_new=True)

    monkeypatch.setattr(Client, "update", update)
    assert ddfs("template", "update", "debian-12", "--keyring", "new.asc").code == 0
    assert ddfs("template", "update", "debian-12", "--no-keyring").code == 0
    assert asked == [
        UpdateTemplate(keyring=f"{tmp_path}/new.asc"),
        UpdateTemplate(no_keyring=True),
    ]
    for words, says in (
        (["a", "--keyring", "k", "--no-keyring"], "--keyring: not together with --no-keyring"),
        (["a", "b", "--keyring", "k"], "--keyring: goes with one template, not 2"),
        (["--all", "--no-keyring"], "--all: not together with --no-keyring"),
        (["--all", "a"], "--all: not together with a name"),
        ([], "name a template, or give --all"),
    ):
        refused = ddfs("template", "update", *words)
        assert (refused.code, refused.err) == (errors.EXIT_REQUEST, f"ddfs: {says}\n")
    assert len(asked) == 2


def test_a_bad_name_is_refused_before_anybody_is_asked(ddfs: Ddfs, service: FakeService) -> None:
    done = ddfs("template", "add", "../x", "https://example.org/n.meta4")
    assert done.code == errors.EXIT_REQUEST
    assert done.err.startswith("ddfs: '../x' cannot be a template's name")
    assert "../x" not in service.known


def test_list(ddfs: Ddfs) -> None:
    lines = ddfs("template", "list").out.splitlines()
    assert lines[0].split() == ["NAME", "FORMAT", "SIZE", "VIRTUAL", "STATE", "NEWER", "SOURCE"]
    assert [line.split()[0] for line in lines[1:]] == ["alpine", "debian-12", "old.iso"]
    # Not on a terminal: nothing is cut short, however long the line.
    assert lines[1].endswith("https://example.org/a.meta4")
    as_json = json.loads(ddfs("template", "list", "--json").out)
    assert [status["name"] for status in as_json] == ["alpine", "debian-12", "old.iso"]


@pytest.mark.parametrize(
    "text", ["debian-12", "debian-12.qcow2", "/srv/ddfs/templates/debian-12.qcow2"]
)
def test_names_in_all_their_forms(ddfs: Ddfs, text: str) -> None:
    assert json.loads(ddfs("template", "show", text, "--json").out)["name"] == "debian-12"


def test_a_name_that_ends_like_a_format(ddfs: Ddfs) -> None:
    for text in ("old.iso", "old.iso.qcow2", "/srv/ddfs/templates/old.iso.qcow2"):
        assert json.loads(ddfs("template", "show", text, "--json").out)["name"] == "old.iso"


@pytest.mark.parametrize("text", ["debian-12.iso", "/srv/ddfs/templates/debian-12.iso", ""])
def test_a_name_with_another_format_is_nobodys(ddfs: Ddfs, service: FakeService, text: str) -> None:
    done = ddfs("template", "remove", text)
    assert (done.code, done.out) == (errors.EXIT_REQUEST, "")
    assert done.err.startswith(f"ddfs: no template is called {text.rpartition('/')[2]!r}; ")
    assert service.removed == []


def test_one_template_s_name_that_is_anothers_file(ddfs: Ddfs, service: FakeService) -> None:
    service.known["alpine.qcow2"] = make_status("alpine.qcow2")
    done = ddfs("template", "remove", "alpine.qcow2")
    assert (done.code, done.out, service.removed) == (errors.EXIT_REQUEST, "", [])
    here = "/srv/ddfs/templates"
    assert f"{here}/alpine.qcow2.qcow2, and the file of {here}/alpine.qcow2: " in done.err
    ddfs("template", "remove", f"{here}/alpine.qcow2")
    ddfs("template", "remove", f"{here}/alpine.qcow2.qcow2")
    assert [name for name, _ in service.removed] == ["alpine", "alpine.qcow2"]


@pytest.mark.parametrize("domain", ["", "a/b"])
def test_what_cannot_be_a_domain(ddfs: Ddfs, domain: str) -> None:
    done = ddfs("start", domain)
    assert done.code == errors.EXIT_REQUEST
    assert done.err == f"ddfs: {domain!r} cannot be a domain's name\n"


def test_a_path_elsewhere_is_no_template(ddfs: Ddfs) -> None:
    done = ddfs("cancel", "/tmp/debian-12.qcow2")
    assert done.code == errors.EXIT_REQUEST
    expected = "is not in /srv/ddfs/templates: give the name of a template\n"
    assert done.err == f"ddfs: /tmp/debian-12.qcow2 {expected}"


def test_an_unknown_template(ddfs: Ddfs) -> None:
    done = ddfs("template", "show", "nosuch.qcow2")
    assert (done.code, done.out) == (errors.EXIT_REQUEST, "")
    assert done.err.startswith("ddfs: no template is called 'nosuch.qcow2'; ")
    done = ddfs("prefetch", "nosuch", "--json")
    assert json.loads(done.out)["kind"] == "unknown-template"
    assert done.err.startswith("ddfs: ")


def test_show_names_mirrors(ddfs: Ddfs) -> None:
    out = ddfs("template", "show", "alpine").out
    assert "https://m.example.org/a  busy   10 B" in out
    assert "path            /srv/ddfs/templates/alpine.qcow2" in out


def test_remove(ddfs: Ddfs, service: FakeService) -> None:
    assert ddfs("template", "remove", "alpine.qcow2", "--purge").out.startswith("alpine: removed")
    assert json.loads(ddfs("template", "remove", "debian-12", "--json").out)["purged"] is False
    assert service.removed == [("alpine", True), ("debian-12", False)]


def test_prefetch_waits(ddfs: Ddfs) -> None:
    done = ddfs("prefetch", "debian-12", "alpine", "debian-12.qcow2")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "debian-12.qcow2: here, 1000 B, /images/debian-12",
        "alpine.qcow2: here, 1000 B, /images/alpine",
    ]


def test_prefetch_without_waiting(ddfs: Ddfs) -> None:
    done = ddfs("prefetch", "debian-12", "--no-wait", "--json")
    assert done.code == 0
    assert [status["state"] for status in json.loads(done.out)] == ["downloading"]


def test_a_prefetch_that_fails(ddfs: Ddfs, service: FakeService) -> None:
    service.failing["alpine"] = "every mirror failed"
    done = ddfs("prefetch", "debian-12", "alpine")
    assert done.code == errors.EXIT_NOT_READY
    assert done.out.splitlines()[0] == "debian-12.qcow2: here, 1000 B, /images/debian-12"
    assert done.err == "ddfs: alpine.qcow2: every mirror failed (tried again in 30 s)\n"


def test_a_prefetch_that_somebody_cancels(ddfs: Ddfs, service: FakeService) -> None:
    def move_on(status: object) -> object:
        service._move_on = FakeService._move_on.__get__(service)  # type: ignore[method-assign]
        return service.cancel(["alpine"])[0]

    found = service.prefetch(["alpine"])
    assert found[0].state == "downloading"
    service.prefetch = lambda names: found  # type: ignore[method-assign]
    service._move_on = move_on  # type: ignore[method-assign, assignment]
    done = ddfs("prefetch", "alpine")
    assert done.code == errors.EXIT_NOT_READY
    assert done.err == "ddfs: alpine.qcow2: the fetch was cancelled\n"


def test_status(ddfs: Ddfs, service: FakeService) -> None:
    service.prefetch(["debian-12"])
    lines = ddfs("status").out.splitlines()
    assert lines[0].startswith("ddfs 0 at /srv/ddfs/templates: 3 templates, 0 here")
    assert lines[3].split()[:5] == ["debian-12", "downloading", "400", "B", "1000"]
    one = ddfs("status", "alpine", "--json")
    document = json.loads(one.out)
    assert document["daemon"]["total"] == 3
    assert [status["name"] for status in document["templates"]] == ["alpine"]
    assert [line.split()[0] for line in ddfs("status", "alpine").out.splitlines()] == [
        "NAME",
        "alpine",
    ]


def test_cancel(ddfs: Ddfs, service: FakeService) -> None:
    service.prefetch(["debian-12"])
    done = ddfs("cancel", "debian-12")
    assert done.out == "debian-12.qcow2: not-downloaded, 40 % of 1000 B here\n"


def test_start(ddfs: Ddfs, service: FakeService) -> None:
    done = ddfs("start", "vm1")
    assert (done.code, done.out) == (0, "vm1: started\n")
    assert service.started == ["vm1"]
    assert {status.state for status in service.known.values()} == {"downloaded"}


def test_start_does_not_start_what_is_not_here(ddfs: Ddfs, service: FakeService) -> None:
    service.failing["alpine"] = "no mirror answers"
    done = ddfs("start", "vm1")
    assert done.code == errors.EXIT_NOT_READY
    assert done.err.startswith("ddfs: alpine.qcow2: no mirror answers")
    assert service.started == []
    done = ddfs("start", "nobody")
    assert (done.code, done.err) == (errors.EXIT_HOST, "ddfs: no domain called 'nobody'\n")


def test_pool(ddfs: Ddfs) -> None:
    refused = ddfs("pool", "refresh")
    assert refused.code == errors.EXIT_HOST
    assert refused.err == "ddfs: no pool is defined; define it with: ddfs pool define\n"
    defined = ddfs("pool", "define", "--name", "mine")
    assert defined.out == "mine: active, /srv/ddfs/templates, 3 volumes\n"
    assert json.loads(ddfs("pool", "refresh", "--json").out)["volumes"] == 3
    assert ddfs("pool", "undefine").out == "mine: not active, /srv/ddfs/templates\n"


def test_text_from_outside_is_harmless(ddfs: Ddfs, service: FakeService) -> None:
    service.known["alpine"] = make_status(
        "alpine", state="error", last_error="\x1b[2J[red]oops\nnext", source="https://e/\x07"
    )
    for command in (("template", "show", "alpine"), ("status",), ("template", "list")):
        out = ddfs(*command).out
        assert "\x1b" not in out
        assert "\x07" not in out
    assert r"\x1b[2J[red]oops next" in ddfs("status").out


def test_a_host_is_forgotten_once(ddfs: Ddfs) -> None:
    done = ddfs("forget", "gone")
    assert (done.code, done.out) == (0, "gone: forgotten\n")
    done = ddfs("forget", "gone")
    assert done.code == errors.EXIT_REQUEST
    assert done.err == "ddfs: no other host called 'gone' is known\n"
