"""The API from outside: real sockets, curl, and the client."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.control.body import MAX_BODY_BYTES
from ddfs.control.client import Client
from ddfs.control.messages import AddTemplate, GateAnswer, GateFile, GateQuestion
from tests.control.fake import FakeService, RunningDaemon, running


@pytest.fixture
def service() -> FakeService:
    return FakeService("debian-12", "alpine")


@pytest.fixture
def daemon(service: FakeService, tmp_path: Path) -> Iterator[RunningDaemon]:
    with running(service, tmp_path) as found:
        yield found


@pytest.fixture
def client(daemon: RunningDaemon) -> Client:
    return Client(daemon.path, daemon.reader_path)


def curl(path: Path, target: str, *arguments: str) -> tuple[int, dict[str, str], bytes]:
    command = ["curl", "-sS", "-i", "--max-time", "20", "--unix-socket", str(path), *arguments]
    out = subprocess.run([*command, f"http://ddfs{target}"], capture_output=True, check=True).stdout
    head, _, body = out.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


def test_the_hooks_question_is_answered_with_a_length(
    daemon: RunningDaemon, service: FakeService
) -> None:
    path = "/srv/ddfs/templates/alpine.qcow2"
    question = {
        "domain": "vm1",
        "files": [
            {"path": "/srv/ddfs/templates/alpine.qcow2", "writable": False, "optional": True}
        ],
    }
    # Without a content type, as a hand-written client may send it.
    status, headers, body = curl(
        daemon.path, "/gate", "-H", "content-type:", "--data", json.dumps(question)
    )
    assert (status, json.loads(body)) == (200, {"allowed": True, "message": ""})
    assert int(headers["content-length"]) == len(body)
    assert "transfer-encoding" not in headers
    file = GateFile(path, writable=False, optional=True)
    assert service.asked == [GateQuestion("vm1", (file,))]


def test_curl_data_without_a_header_is_json(daemon: RunningDaemon) -> None:
    status, _, body = curl(daemon.path, "/v1/prefetch", "--data", '{"names": ["alpine"]}')
    assert status == 200
    assert json.loads(body)[0]["state"] == "downloading"


def test_every_method_of_the_client(client: Client, service: FakeService) -> None:
    assert client.daemon_status() == service.daemon_status()
    assert [t.name for t in client.templates()] == ["alpine", "debian-12"]
    assert client.templates(["debian-12"]) == [service.template("debian-12")]
    assert client.template("alpine").mirrors[0].bytes_per_second == 2.5
    added = client.add_template(AddTemplate("new+1", "https://example.org/x", checksum="md5:0"))
    assert added == service.template("new+1")
    assert [t.state for t in client.prefetch(["alpine", "new+1"])] == ["downloading"] * 2
    assert [t.state for t in client.cancel(["alpine"])] == ["not-downloaded"]
    client.remove_template("new+1", purge=True)
    client.remove_template("alpine", purge=False)
    assert service.removed == [("new+1", True), ("alpine", False)]
    refused = client.gate(GateQuestion("vm", (GateFile("/m/zzz.img"),)))
    assert refused == GateAnswer(False, "not here: ['/m/zzz.img']")
    assert client.define_pool("p").active
    assert client.refresh_pool().volumes == 1
    assert not client.undefine_pool().active
    assert [t.name for t in client.domain_templates("vm ä")] == ["debian-12"]
    client.start_domain("vm ä")
    assert service.started == ["vm ä"]
    assert client.metrics() == b"ddfs_templates 1\n"


def test_unknown_template_comes_back_as_itself(client: Client) -> None:
    with pytest.raises(errors.UnknownTemplateError, match=r"^no template is called 'a/b\?'$"):
        client.prefetch(["a/b?"])
    with pytest.raises(errors.UnknownTemplateError):
        client.template("nosuch")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"name": "a"}', "body.source: Field required"),
        ('{"name": "a", "source": "s", "chekcsum": "x"}', "body.chekcsum: Unexpected"),
        ('{"name": 3, "source": "s"}', "body.name: Input should be a valid string"),
        ('{"name": ', "body.9: JSON decode error"),
        ("\xff", "body.0: JSON decode error"),
        ("[]", "body: Input should be"),
        ("", "body: Field required"),
    ],
)
def test_malformed_bodies_get_one_line(
    daemon: RunningDaemon, service: FakeService, body: str, says: str
) -> None:
    status, _, answer = curl(daemon.path, "/v1/templates", "--data", body)
    problem = json.loads(answer)
    assert status == 400
    assert problem["kind"] == "invalid-value"
    assert problem["message"].startswith(says)
    assert "\n" not in problem["message"]
    # An option of a newer client.
    assert ("restart the daemon" in problem["message"]) == ("Unexpected" in says)
    assert sorted(service.known) == ["alpine", "debian-12"]


def test_a_deeply_nested_body_is_refused_and_nothing_falls(
    daemon: RunningDaemon, client: Client
) -> None:
    connection = http.client.HTTPConnection("ddfs")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(daemon.path))
    connection.request("POST", "/gate", b"[" * 1_000_000)
    response = connection.getresponse()
    assert response.status in (400, 500)
    assert json.loads(response.read())["message"]
    connection.close()
    assert client.daemon_status().total == 2


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_are_capped(daemon: RunningDaemon, chunked: bool) -> None:
    connection = http.client.HTTPConnection("ddfs")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(daemon.path))
    parts = [b" " * 65536] * (MAX_BODY_BYTES // 65536) + [b" "]
    if chunked:
        connection.request("POST", "/gate", iter(parts), encode_chunked=True)
    else:
        connection.request("POST", "/gate", b"".join(parts))
    response = connection.getresponse()
    assert response.status == 400
    assert json.loads(response.read())["message"] == "the request has more than 8388608 bytes"
    connection.close()


def test_an_unexpected_exception_is_logged_and_answered(
    daemon: RunningDaemon,
    client: Client,
    service: FakeService,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service.raises = ZeroDivisionError("secret")
    with caplog.at_level(logging.ERROR):
        status, _, answer = curl(daemon.path, "/v1/status")
    assert status == 500
    assert json.loads(answer) == {
        "kind": "internal",
        "message": "unexpected ZeroDivisionError: the daemon's log says more",
    }
    assert "Traceback" in caplog.text
    assert "secret" in caplog.text
    with pytest.raises(errors.HostError, match="unexpected ZeroDivisionError") as caught:
        client.daemon_status()
    assert caught.value.exit_code == errors.EXIT_HOST


def test_the_reader_socket_changes_nothing(daemon: RunningDaemon, service: FakeService) -> None:
    for target in ("/v1/status", "/v1/templates", "/v1/templates/alpine", "/metrics"):
        assert curl(daemon.reader_path, target)[0] == 200
    document = json.loads(curl(daemon.path, "/openapi.json")[2])
    changing = [
        (method, path)
        for path, operations in document["paths"].items()
        for method in operations
        if method != "get"
    ]
    assert len(changing) >= 19
    for method, path in changing:
        target = path.replace("{name}", "alpine").replace("{domain}", "vm")
        status, _, body = curl(daemon.reader_path, target, "-X", method.upper(), "--data", "{}")
        assert status in (404, 405), path
        assert json.loads(body)["message"].endswith("this socket only reads")
    assert service.removed == service.started == service.asked == []
    assert service.template("alpine").state == "not-downloaded"


def test_the_openapi_document_names_every_message(daemon: RunningDaemon) -> None:
    document = json.loads(curl(daemon.path, "/openapi.json")[2])
    assert {"/gate", "/metrics", "/v1/status", "/v1/templates/{name}"} <= set(document["paths"])
    schemas = document["components"]["schemas"]
    assert {"TemplateStatus", "GateQuestion", "GateAnswer", "Problem"} <= set(schemas)
    assert schemas["GateFile"]["required"] == ["path"]
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["description"]
            assert operation["responses"]["default"]["description"]
            assert "422" not in operation["responses"]


def test_metrics_are_in_prometheus_format(daemon: RunningDaemon) -> None:
    status, headers, body = curl(daemon.reader_path, "/metrics")
    assert (status, body) == (200, b"ddfs_templates 1\n")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")


def test_unknown_paths_are_problems(daemon: RunningDaemon) -> None:
    status, _, body = curl(daemon.path, "/v2/status")
    assert status == 404
    expected = {"kind": "invalid-value", "message": "GET /v2/status: Not Found"}
    assert json.loads(body) == expected
    assert curl(daemon.path, "/v1/status", "-X", "PUT")[0] == 405
