"""How a source is reached, as people type it; and the authorities of a host."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import trustme

from ddfs.cli.arguments import secrets_in
from ddfs.cli.doctor import authorities
from ddfs.cli.fetch_request import FetchRequest, parse
from ddfs.fetch.certificates import added
from tests.cli.conftest import Ddfs
from tests.control.fake import FakeService, RunningDaemon


def test_a_fetch_request_says_how_the_source_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fetch", "https://a.example/x.img", "--header", "X: y", "--header=Z: 1"]
    request = parse([*words, "--token-file", "t", "--ca-file=/c", "--checksum", f"md5:{'0' * 32}"])
    assert isinstance(request, FetchRequest)
    access = request.declaration().access
    assert access.headers == ("X: y", "Z: 1")
    assert (access.token_file, access.ca_file) == (str(tmp_path / "t"), "/c")


def test_a_registration_takes_it_along(
    ddfs: Ddfs,
    daemon: RunningDaemon,
    service: FakeService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h").write_text("X: geheim\n")
    (tmp_path / "h").chmod(0o644)
    done = ddfs(
        "template", "add", "x", "https://a.example/x.img", "--header", "X: geheim",
        "--headers-file", "h", "--client-cert", "c", "--checksum", f"md5:{'0' * 32}",
    )  # fmt: skip
    assert done.code == 0
    assert "h: everybody on this host can read it" in done.err
    asked = service.added[-1]
    assert asked.headers == ("X: geheim",)
    assert asked.headers_file == f"{tmp_path}/h"
    assert asked.client_cert == f"{tmp_path}/c"
    assert "geheim" not in done.out + done.err


def test_what_is_secret_among_arguments() -> None:
    given = ["fetch", "https://u:p@a.example/x", "--header", "X: y", "--header=Z: 1"]
    assert list(secrets_in(given)) == ["u:p", " y", " 1"]
    assert list(secrets_in(["template", "show", "debian-12@2", "--headers-file", "a:b"])) == []


def test_authorities(ddfs: Ddfs, tmp_path: Path) -> None:
    path = tmp_path / "lab.pem"
    trustme.CA(organization_name="The lab").cert_pem.write_to_path(str(path))
    added = ddfs("ca", "add", str(path))
    assert (added.code, added.err) == (0, "")
    assert added.out.startswith("lab: ")
    listed = ddfs("ca", "list").out.splitlines()
    assert listed[1].split()[0] == "lab"
    [shown] = json.loads(ddfs("ca", "list", "--json").out)
    assert shown["name"] == "lab"
    assert shown["certificates"][0]["expires_at"] > 2e9
    assert ddfs("ca", "remove", "lab").out == "lab: removed\n"
    assert ddfs("ca", "remove", "lab").code == 2
    path.write_text("nonsense")
    refused = ddfs("ca", "add", str(path))
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"ddfs: {path}: no PEM certificate in it\n"


def test_doctor_looks_at_authorities(tmp_path: Path) -> None:
    (tmp_path / "broken.pem").write_text("nonsense")
    trustme.CA(organization_name="lab").cert_pem.write_to_path(str(tmp_path / "lab.pem"))
    broken, good = authorities(tmp_path, time.time())
    assert (broken.level, good.level) == ("fail", "ok")
    assert "ddfs ca remove broken" in broken.text
    expires_at = added(tmp_path)[1].certificates[0].expires_at
    _, soon = authorities(tmp_path, expires_at - 3.5 * 86400)
    assert soon.level == "warn"
    assert soon.text.endswith(" expires in 3 days")
    _, late = authorities(tmp_path, expires_at + 1)
    assert late.level == "fail"
    assert list(authorities(tmp_path / "none", 0.0)) == []
