"""Images behind logins and certificates, from real nginx servers, through the whole stack."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import socket
import sqlite3
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from lab.host import Host
from lab.metalink import write_metalink
from lab.mirrors import Mirror, reserved_port
from lab.processes import PATIENCE_SECONDS, Process, wait_until

MIB = 1024 * 1024
SECRET = "geheim-7f3a"

CONFIGURATION = """\
daemon off;
master_process off;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 512; }}
http {{
    log_format seen '$server_port $status $uri auth=[$http_authorization] key=[$http_x_key]'
        ' encoding=[$sent_http_content_encoding] client=$ssl_client_verify';
    access_log {work}/access.log seen;
    client_body_temp_path {work}/client; proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    root {root};
    ssl_certificate {work}/server.pem;
    ssl_certificate_key {work}/server.key;
    server {{
        listen 127.0.0.1:{login} ssl;
        auth_basic "images"; auth_basic_user_file {work}/users;
        rewrite ^/moved/(.*)$ /$1 redirect;
        rewrite ^/away/(.*)$ http://127.0.0.1:{plain}/$1 redirect;
    }}
    server {{
        listen 127.0.0.1:{mutual} ssl;
        ssl_verify_client on; ssl_client_certificate {work}/ca.pem;
    }}
    server {{
        listen 127.0.0.1:{keyed};
        if ($http_x_key != "{secret}") {{ return 403; }}
        limit_rate 8m;
    }}
    server {{
        listen 127.0.0.1:{plain}; gzip on; gzip_types *; gzip_min_length 1;
        location /packed/ {{ gzip_static always; }}
    }}
}}
"""


class Servers:
    """nginx with a login, a client certificate, a header, and nothing, each on a port."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.root = work / "root"
        self.root.mkdir(parents=True)
        self.image = os.urandom(6 * MIB)
        (self.root / "disk.img").write_bytes(self.image)
        self.checksum = f"sha256:{hashlib.sha256(self.image).hexdigest()}"
        names = ("login", "mutual", "keyed", "plain")
        self._reserved = {name: reserved_port("127.0.0.1") for name in names}
        self._ports = {name: port.getsockname()[1] for name, port in self._reserved.items()}
        authority = trustme.CA()
        self.ca = work / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        for name, issued in (
            ("server", authority.issue_cert("127.0.0.1")),
            ("client", authority.issue_cert("host.example")),
        ):
            issued.cert_chain_pems[0].write_to_path(str(work / f"{name}.pem"))
            issued.private_key_pem.write_to_path(str(work / f"{name}.key"))
            (work / f"{name}.key").chmod(0o600)
        (work / "users").write_text(f"user:{{PLAIN}}{SECRET}\n")
        self.netrc = work / "netrc"
        self.netrc.write_text(f'machine 127.0.0.1\n  login user\n  password "{SECRET}"\n')
        self.netrc.chmod(0o600)
        (work / "nginx.conf").write_text(
            CONFIGURATION.format(work=work, root=self.root, secret=SECRET, **self._ports)
        )
        self._process = Process(
            ["nginx", "-c", work / "nginx.conf", "-p", work], work / "nginx.log"
        )
        self._process.wait_until(self._answers, "nginx answers")

    def close(self) -> None:
        self._process.close()
        for port in self._reserved.values():
            port.close()

    def url(self, server: str, path: str = "disk.img", login: str = "") -> str:
        scheme = "https" if server in ("login", "mutual") else "http"
        return f"{scheme}://{login}127.0.0.1:{self._ports[server]}/{path}"

    def lines(self, server: str) -> list[str]:
        text = (self.work / "access.log").read_text()
        return [line for line in text.splitlines() if line.startswith(f"{self._ports[server]} ")]

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            for port in self._ports.values():
                socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return False


@pytest.fixture
def servers(directory: Path) -> Iterator[Servers]:
    found = Servers(directory / "web")
    try:
        yield found
    finally:
        found.close()


def test_templates_behind_logins(host: Host, servers: Servers) -> None:
    token = host.directory / "headers"
    token.write_text(f"# for the images\nX-Key: {SECRET}\n")
    token.chmod(0o644)
    trust = ("--checksum", servers.checksum, "--ca-file", servers.ca)
    client = ("--client-cert", servers.work / "client.pem")
    key = ("--client-key", servers.work / "client.key")

    def add(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return host.ddfs("template", "add", name, *arguments)

    add("netrc", servers.url("login"), "--netrc-file", servers.netrc, *trust)
    add("login", servers.url("login", login=f"user:{SECRET}@"), *trust)
    add("moved", servers.url("login", "moved/disk.img", login=f"user:{SECRET}@"), *trust)
    add("client", servers.url("mutual"), *client, *key, *trust)
    warned = add("keyed", servers.url("keyed"), "--headers-file", token, *trust[:2])
    assert "everybody on this host can read it" in warned.stderr
    refused = host.ddfs("template", "add", "no", servers.url("login"), *trust, check=False)
    assert refused.returncode == 3
    assert f"{servers.url('login')}: refuses (HTTP 401): it wants a login" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert any(" 302 /moved/disk.img " in line for line in servers.lines("login"))
    assert all(line.endswith(" client=SUCCESS") for line in servers.lines("mutual"))
    # A login is changed by saying it again.
    add("keyed", servers.url("keyed"), "--header", f"X-Key: {SECRET}", *trust[:2])
    token.unlink()
    # What is written down is enough after a restart; each name for its own origin.
    host.stop()
    host.serve()
    host.ddfs("prefetch", "netrc", "client", "keyed")
    assert host.published("netrc").read_bytes() == servers.image
    shown = [
        host.ddfs(*command).stdout
        for command in (
            ["template", "list"], ["template", "show", "login"], ["status", "--json"],
            ["template", "show", "keyed", "--json"], ["status"],
        )
    ]  # fmt: skip
    pair = "dXNlcjp"  # "user:" in base 64
    for text in (*shown, host.log.read_text(), host.api("GET", "/metrics")[1].decode()):
        assert SECRET not in text
        assert pair not in text
    assert not any(SECRET in line for line in servers.lines("plain"))


def test_a_checksum_file_over_tls_lets_the_image_come_without(host: Host, servers: Servers) -> None:
    digest = servers.checksum.partition(":")[2]
    (servers.root / "SHA256SUMS").write_text(f"{digest}  disk.img\n")
    trust = ("--ca-file", servers.ca, "--netrc-file", servers.netrc)
    away = servers.url("login", "away/disk.img")
    sums = ("--checksum-url", servers.url("login", "SHA256SUMS"))
    host.ddfs("template", "add", "away", away, *sums, *trust)
    host.ddfs("prefetch", "away")
    assert host.published("away").read_bytes() == servers.image
    for nothing in (("--unverified",), ("--checksum-url", servers.url("plain", "SHA256SUMS"))):
        refused = host.ddfs("template", "add", "no", away, *nothing, *trust, check=False)
        assert refused.returncode == 3
        assert "from https to http" in refused.stderr


def test_fetch_with_credentials(host: Host, servers: Servers) -> None:
    def fetch(name: str, *arguments: str | Path, check: bool = True) -> str:
        result = host.ddfs("fetch", *arguments, "-o", host.directory / name, check=check)
        return result.stderr

    trust = ("--checksum", servers.checksum, "--ca-file", servers.ca)
    fetch("a", servers.url("login", "away/disk.img"), "--netrc-file", servers.netrc, *trust)
    assert (host.directory / "a").read_bytes() == servers.image
    assert not any("Basic" in line for line in servers.lines("plain"))
    fetch("b", servers.url("keyed"), "--header", f"X-Key: {SECRET}", *trust[:2])
    said = fetch("c", servers.url("keyed"), "--header", f"Host: {SECRET}", check=False)
    assert "Host is set by ddfs" in said
    assert SECRET not in said
    mutual = ("fetch", servers.url("mutual"), *trust, "-o", host.directory / "d")
    refused = host.ddfs(*mutual, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert "400" in refused.stderr
    key = ("--client-key", servers.work / "client.key")
    host.ddfs(*mutual, "--client-cert", servers.work / "client.pem", *key)
    assert (host.directory / "d").read_bytes() == servers.image


def test_a_server_that_would_compress_is_not_asked_to(host: Host, servers: Servers) -> None:
    digest = servers.checksum.partition(":")[2]
    (servers.root / "SHA256SUMS").write_text(f"{digest}  disk.img\n" * 40)
    image = servers.url("plain")
    write_metalink(servers.root / "disk.meta4", servers.root / "disk.img", [image])
    for name in ("disk.img", "SHA256SUMS", "disk.meta4"):
        asked = urllib.request.Request(servers.url("plain", name))
        asked.add_header("Accept-Encoding", "gzip")
        with urllib.request.urlopen(asked) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            answer.read()
    # The log is written when an answer has ended.
    wait_until(lambda: len(servers.lines("plain")) == 3, "all is logged")
    sums = ("--checksum-url", servers.url("plain", "SHA256SUMS"))
    for name, source in (("a", (image, *sums)), ("b", (servers.url("plain", "disk.meta4"),))):
        host.ddfs("fetch", *source, "-o", host.directory / name)
        assert (host.directory / name).read_bytes() == servers.image
        host.ddfs("template", "add", name, *source)
    host.ddfs("prefetch", "a", "b")
    assert host.published("a").read_bytes() == servers.image
    ours = servers.lines("plain")[3:]
    assert len(ours) >= 8
    assert all("encoding=[-]" in line for line in ours)

    # One that compresses whoever asks for what: documents are unpacked, images refused.
    packed = servers.root / "packed"
    packed.mkdir()
    for name in ("disk.img", "SHA256SUMS", "disk.meta4"):
        (packed / f"{name}.gz").write_bytes(gzip.compress((servers.root / name).read_bytes(), 1))
    sums = ("--checksum-url", servers.url("plain", "packed/SHA256SUMS"))
    for number, source in enumerate(((image, *sums), (servers.url("plain", "packed/disk.meta4"),))):
        copy = host.directory / f"unpacked{number}"
        host.ddfs("fetch", *source, "-o", copy)
        assert copy.read_bytes() == servers.image
    source = (servers.url("plain", "packed/disk.img"), "--checksum", servers.checksum)
    refused = host.ddfs("fetch", *source, "-o", host.directory / "c", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert "gzip" in refused.stderr


def test_secrets_are_not_in_the_process_list(host: Host, servers: Servers) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    url = f"http://user:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/x.img"
    arguments = ["fetch", url, "--header", f"X-Key: {SECRET}", "--checksum", servers.checksum]
    process = subprocess.Popen([*host.command, *arguments], stderr=subprocess.DEVNULL)
    try:
        silent.settimeout(PATIENCE_SECONDS)
        connection, _ = silent.accept()  # by then it was all read
        request = connection.recv(4096)
        assert SECRET.encode() in request
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"--header" in shown
        assert SECRET.encode() not in shown
        connection.close()
    finally:
        process.kill()
        process.wait()
        silent.close()


def test_authorities_of_the_host_count_at_once(host: Host, servers: Servers) -> None:
    add = ("template", "add", "client", servers.url("login"), "--netrc-file", servers.netrc)
    add = (*add, "--checksum", servers.checksum)
    refused = host.ddfs(*add, check=False)
    assert "certificate" in refused.stderr
    host.ddfs("ca", "add", servers.ca, "--name", "lab")
    listed = host.ddfs("ca", "list").stdout
    assert "lab" in listed
    host.ddfs(*add)
    host.ddfs("ca", "remove", "lab")
    said = host.ddfs("prefetch", "client", check=False).stderr
    assert "certificate" in said
    assert host.ddfs("ca", "remove", "lab", check=False).returncode == 2
    host.ddfs("ca", "add", servers.ca)
    host.ddfs("prefetch", "client")
    assert host.published("client").read_bytes() == servers.image


def test_who_may_name_an_address_holds_over_a_restart(directory: Path) -> None:
    image = directory / "root" / "disk.img"
    image.parent.mkdir()
    image.write_bytes(os.urandom(3 * MIB))
    with (
        Mirror(directory / "web", image.parent) as web,
        Mirror(directory / "near", image.parent, address="127.0.0.2") as near,
        Host(directory / "strict") as host,
    ):
        text = host.settings.read_text()
        host.settings.write_text(text[: text.index("[network]")])
        host.serve()
        for name, url in (
            ("good", near.url("disk.img")),
            ("bad", "http://10.255.255.1/disk.img"),
            ("cloud", "http://169.254.169.254/disk.img"),
        ):
            document = image.parent / f"{name}.meta4"
            host.ddfs("metalink", "make", image, "--url", url, "-o", document)
            result = host.ddfs(
                "template", "add", name, web.url(document.name), check=name == "good"
            )
            if name != "good":
                assert result.returncode == 3
                assert "named from elsewhere" in result.stderr
        host.stop()
        host.serve()
        host.ddfs("prefetch", "good")
        assert host.published("good").read_bytes() == image.read_bytes()
        with contextlib.closing(sqlite3.connect(host.state / "catalogue.db")) as catalogue:
            named = catalogue.execute("SELECT url, named_from FROM mirror").fetchall()
        assert named == [(near.url("disk.img"), "127.0.0.0/8")]
