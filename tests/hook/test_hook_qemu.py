"""The real hook as libvirt runs it, against a real Unix socket."""

import ast
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ddfs import config, hook

TOP = Path(__file__).resolve().parents[2]
SCRIPT = TOP / "hooks/qemu"


@dataclass
class Host:
    """A host in a directory: settings, mountpoint, and how to call the hook there."""

    root: Path
    wait: float = 0.5
    script: Path = SCRIPT
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def mountpoint(self) -> Path:
        return self.root / "mount point"

    @property
    def templates(self) -> Path:
        return self.mountpoint / "templates"

    @property
    def settings(self) -> Path:
        return self.root / "ddfs.toml"

    @property
    def socket(self) -> Path:
        return self.root / "ddfs.sock"

    def write_settings(self, more: str = "") -> None:
        self.settings.write_text(
            f'mountpoint = "{self.mountpoint}"  # here\nsocket = "{self.socket}"\n{more}\n'
            f"[gate]\nwait = {self.wait}\n"
        )

    def run(
        self, xml: str | bytes, *, operation: str = "prepare", sub: str = "begin", name: str = "vm1"
    ) -> subprocess.CompletedProcess[str]:
        """One call with the little environment that libvirtd gives (virCommandAddEnvPassCommon)."""
        data = xml.encode() if isinstance(xml, str) else xml
        done = subprocess.run(
            [str(self.script), name, operation, sub, "-"],
            input=data,
            capture_output=True,
            timeout=30,
            env={"LC_ALL": "C", "PATH": os.environ["PATH"], **self.environ},
        )
        assert done.stdout == b""
        errors = done.stderr.decode()
        assert errors.count("\n") == (done.returncode != 0), errors
        return subprocess.CompletedProcess(done.args, done.returncode, "", errors)


@pytest.fixture
def host() -> Iterator[Host]:
    # A short path: that of a Unix socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="hook-") as root:
        made = Host(Path(root), environ={"DDFS_CONFIG": f"{root}/ddfs.toml"})
        made.templates.mkdir(parents=True)
        made.write_settings()
        yield made


def domain(*sources: Path | str, options: str = "<readonly/>") -> str:
    disks = "".join(
        f"<disk><driver type='qcow2'/><source file='{source}'/><target dev='vda'/>{options}</disk>"
        for source in sources
    )
    return f"<domain type='kvm'><name>vm1</name><devices>{disks}</devices></domain>"


def overlay(path: Path, backing: Path | str) -> Path:
    names = ["-b", str(backing), "-F", "qcow2"]
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", *names, str(path), "1M"], check=True
    )
    return path


def answer_with(body: object, status: str = "200 OK") -> Callable[[bytes], bytes]:
    raw = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    return lambda request: head.encode() + raw


@contextmanager
def daemon(path: Path, answer: Callable[[bytes], bytes | None]) -> Iterator[list[bytes]]:
    """Answers each request with what *answer* makes of it; None leaves it waiting."""
    requests: list[bytes] = []
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(10)
                request = read_request(connection)
                requests.append(request)
                reply = answer(request)
                if reply is None:
                    done.wait(20)
                else:
                    connection.sendall(reply)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0.05)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield requests
        finally:
            done.set()
            thread.join()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    length = int(re.search(rb"(?i)content-length: (\d+)", data)[1])
    while len(data.partition(b"\r\n\r\n")[2]) < length:
        data += connection.recv(65536)
    return data


def question(request: bytes) -> dict[str, object]:
    return json.loads(request.partition(b"\r\n\r\n")[2])


ALLOWED = answer_with({"allowed": True, "message": ""})
REFUSED = answer_with({"allowed": False, "message": "debian-12.qcow2 is 42 % here"})


@pytest.mark.parametrize(
    ("operation", "sub"),
    [
        ("start", "begin"),
        ("started", "begin"),
        ("stopped", "end"),
        ("release", "end"),
        ("reconnect", "begin"),
        ("migrate", "begin"),
        ("restore", "begin"),
        ("prepare", "end"),
        ("prepare", ""),
        ("nonsense", "-"),
    ],
)
def test_other_operations_succeed_without_python_or_xml(
    host: Host, operation: str, sub: str
) -> None:
    host.environ["PATH"] = "/nonexistent"  # a process could not even be started
    assert host.run("no xml at all", operation=operation, sub=sub).returncode == 0


def test_wrong_arguments_succeed() -> None:
    for arguments in ([], ["vm1"], ["vm1", "prepare"], ["", "", ""], ["a", "b", "c", "d", "e"]):
        done = subprocess.run([SCRIPT, *arguments], stdin=subprocess.DEVNULL, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_domain_without_ddfs_asks_nobody(host: Host) -> None:
    with daemon(host.socket, REFUSED) as requests:
        plain = overlay(host.root / "plain.qcow2", host.root / "missing.qcow2")
        assert host.run(domain(plain, "/dev/null", "/no/such/file")).returncode == 0
    assert requests == []


def test_asks_with_the_files_under_the_mountpoint(host: Host) -> None:
    template = host.templates / "debian-12.qcow2"
    top = overlay(host.root / "grün 'x'.qcow2", template)
    (host.root / "library").symlink_to(host.templates)
    xml = domain(str(top).replace("'", "&apos;"), options="").replace(
        "</devices>",
        f"<disk device='cdrom'><source file='{host.root}/library/cd.iso'"
        " startupPolicy='optional'/></disk></devices>",
    )
    with daemon(host.socket, ALLOWED) as requests:
        done = host.run(xml, name="vm ü")
    assert (done.returncode, done.stderr) == (0, "")
    (request,) = requests
    assert request.startswith(b"POST /gate HTTP/1.1\r\nHost: ")
    assert question(request) == {
        "domain": "vm ü",
        "files": [
            {"path": str(template), "writable": False, "optional": False},
            {"path": str(host.templates / "cd.iso"), "writable": False, "optional": True},
        ],
    }


def test_a_refusal_is_one_line(host: Host) -> None:
    with daemon(host.socket, REFUSED):
        done = host.run(domain(host.templates / "debian-12.qcow2"))
    assert (done.returncode, done.stderr) == (1, "ddfs: debian-12.qcow2 is 42 % here\n")


def test_a_refusal_with_line_breaks_and_letters_stays_one_line(host: Host) -> None:
    with daemon(host.socket, answer_with({"allowed": False, "message": "a\nb\x1b[2J ü"})):
        done = host.run(domain(host.templates / "t.qcow2"))
    assert (done.returncode, done.stderr) == (1, "ddfs: a b [2J ü\n")


def test_volume_disks_through_the_pools_files(host: Host) -> None:
    pools = host.root / "pools"
    pools.mkdir()
    (pools / "templates.xml").write_text(
        f"<pool><name>templates</name><target><path>{host.templates}</path></target></pool>"
    )
    xml = (
        "<domain><devices><disk type='volume' device='cdrom'>"
        "<source pool='templates' volume='cd.iso'/></disk></devices></domain>"
    )
    program = (
        "import io, os, sys; from ddfs import hook; from ddfs.image.chain import PoolTargets;"
        "sys.exit(hook.main(['vm1','prepare','begin','-'], sys.stdin.buffer, os.environ,"
        "pools=PoolTargets([sys.argv[1]])))"
    )
    with daemon(host.socket, ALLOWED) as requests:
        subprocess.run(
            [sys.executable, "-c", program, pools],
            input=xml.encode(),
            env={**os.environ, **host.environ},
            check=True,
            cwd=TOP,
        )
    assert [f["path"] for f in question(requests[0])["files"]] == [f"{host.templates}/cd.iso"]


def test_a_writable_template_is_refused_before_anybody_is_asked(host: Host) -> None:
    template = host.templates / "debian-12.qcow2"
    with daemon(host.socket, ALLOWED) as requests:
        done = host.run(domain(template, options=""))
    assert requests == []
    assert done.returncode == 1
    assert f"-F qcow2 -b '{template}'" in done.stderr
    assert "<readonly/>" in done.stderr


def sealed(path: Path) -> Path:
    path.write_bytes(b"")
    path.chmod(0o444)
    return path


def test_a_writable_disk_that_may_be_a_published_template_is_asked_about(host: Host) -> None:
    disk = sealed(host.root / "disk.img")
    with daemon(host.socket, REFUSED) as requests:
        assert host.run(domain(disk, options="")).returncode == 1
        assert host.run(domain(disk)).returncode == 0, "read only"
    (request,) = requests
    status = disk.stat()
    assert question(request)["files"] == [
        {"path": str(disk), "writable": True, "device": status.st_dev, "inode": status.st_ino}
    ]


def test_without_a_daemon_only_what_is_called_as_published_templates_are_is_refused(
    host: Host,
) -> None:
    assert host.run(domain(sealed(host.root / "disk.img"), options="")).returncode == 0
    published = sealed(host.root / "debian-12@0123456789ab.qcow2")
    done = host.run(domain(published, options=""))
    assert done.returncode == 1
    assert "make the disk <readonly/>" in done.stderr


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            answer_with({"kind": "catalogue", "message": "the disk failed"}, "500 Error"),
            "the disk failed",
        ),
        (answer_with({"allowed": False}), "vm1 may not start"),
        (answer_with({"allowed": "yes"}), "vm1 may not start"),
        (answer_with({"message": ""}), "no usable answer (200)"),
        (answer_with([1]), "no usable answer (200)"),
        (lambda request: b"HTTP/1.1 404 Not Found\r\n\r\nno such thing", "no usable answer (404)"),
        (lambda request: b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
        (lambda request: b"HTTP/1.1 200 OK\r\n" + b"x" * 200_000, "too long"),
        (lambda request: b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "in the middle"),
        (lambda request: b"", "without an answer"),
        (lambda request: None, "timed out"),
    ],
)
def test_odd_answers_refuse(
    host: Host, reply: Callable[[bytes], bytes | None], expected: str
) -> None:
    host.wait = 0.0
    host.write_settings()
    with daemon(host.socket, reply):
        started = time.monotonic()
        done = host.run(domain(host.templates / "t.qcow2"))
    assert done.returncode == 1
    assert expected in done.stderr
    assert time.monotonic() - started < hook.GRACE_SECONDS + 10


def test_a_body_that_ends_with_the_connection_is_read(host: Host) -> None:
    with daemon(host.socket, lambda request: b'HTTP/1.1 200 OK\r\n\r\n{"allowed": true}'):
        assert host.run(domain(host.templates / "t.qcow2")).returncode == 0


def publish(host: Host, name: str) -> Path:
    published = host.root / f"{name}@0123456789ab"
    published.write_bytes(b"bytes")
    (host.templates / name).symlink_to(published)
    return host.templates / name


def test_without_a_daemon_published_templates_start(host: Host) -> None:
    template = publish(host, "t.qcow2")
    top = overlay(host.root / "top.qcow2", template)
    assert host.run(domain(top, options="")).returncode == 0
    refused = host.run(domain(template, options=""))
    assert refused.returncode == 1
    assert "overlay" in refused.stderr


def test_without_a_daemon_a_refused_connection_counts_as_down(host: Host) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host.socket))
    assert host.run(domain(publish(host, "t.qcow2"))).returncode == 0


def test_without_a_daemon_what_is_missing_refuses_unless_optional(host: Host) -> None:
    missing = host.templates / "missing.qcow2"
    done = host.run(domain(publish(host, "t.qcow2"), missing))
    assert done.returncode == 1
    assert f"does not answer at {host.socket}" in done.stderr
    assert f"{missing} is not on this host" in done.stderr
    assert "ddfs serve" in done.stderr
    optional = domain(missing).replace("<source ", "<source startupPolicy='optional' ")
    assert host.run(optional).returncode == 0


def test_without_a_daemon_dangling_links_and_plain_files_refuse(host: Host) -> None:
    (host.templates / "dangling.qcow2").symlink_to("/no/such/file")
    (host.templates / "plain.qcow2").write_bytes(b"not ours")
    for name in ("dangling.qcow2", "plain.qcow2"):
        assert host.run(domain(host.templates / name)).returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_without_a_daemon_a_mount_that_is_still_there_refuses(host: Host) -> None:
    template = publish(host, "t.qcow2")
    mount = f'mount -t tmpfs none "{host.mountpoint}" && exec "$0" vm1 prepare begin -'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, SCRIPT],
        input=domain(template),
        capture_output=True,
        text=True,
        env={**os.environ, **host.environ},
    )
    assert done.returncode == 1
    assert "its mount" in done.stderr
    assert f"umount -l {host.mountpoint}" in done.stderr


@pytest.mark.parametrize(
    "xml",
    [b"", b"<domain>", b"<domain>" + b"<x>" * 2000, b"<!DOCTYPE x><domain/>", b"<network/>"],
)
def test_xml_that_cannot_be_read_refuses(host: Host, xml: bytes) -> None:
    done = host.run(xml)
    assert done.returncode == 1
    assert done.stderr.startswith("ddfs: ")
    assert "Traceback" not in done.stderr


def test_more_xml_than_the_limit_refuses(host: Host) -> None:
    done = host.run(b"<domain>" + b" " * (17 * 1024 * 1024) + b"</domain>")
    assert done.returncode == 1
    assert "larger than" in done.stderr


def test_broken_settings_stop_only_domains_of_ddfs(host: Host) -> None:
    host.write_settings(more="no_such_key = 1")
    assert host.run(domain("/elsewhere.qcow2")).returncode == 0
    done = host.run(domain(host.templates / "t.qcow2"))
    assert done.returncode == 1
    assert "no_such_key: unknown key" in done.stderr
    assert str(host.settings) in done.stderr


def test_missing_settings_stop_only_domains_of_ddfs(host: Host) -> None:
    host.settings.unlink()
    assert host.run(domain("/elsewhere.qcow2")).returncode == 0
    done = host.run(domain(f"{hook.DEFAULT_MOUNTPOINT}/templates/t.qcow2"))
    assert done.returncode == 1
    assert "no such settings file" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("/srv/ddfs", True)),
        ("[gate]\nwait = 1\n", ("/srv/ddfs", True)),
        ('mountpoint = "/a b/ü"  # here\n', ("/a b/ü", True)),
        ("# x\nstate_dir = '/s'\n mountpoint='/a/' \n[gate]", ("/a", True)),
        ('mountpoint = "/a"\nmountpoint = "/b"\n', ("/a", False)),
        ('mountpoint = "/a\\u0041"\n', ("/srv/ddfs", False)),
        ('"mountpoint" = "/a"\n', ("/srv/ddfs", False)),
        ("x = '''\nmountpoint = '/a'\n'''\n", ("/a", False)),
        ("mountpoint = 7\n", ("/srv/ddfs", False)),
        ("[x]\nmountpoint = '/a'\n", ("/srv/ddfs", True)),
    ],
)
def test_the_quick_look_at_the_settings(text: str, expected: tuple[str, bool]) -> None:
    assert hook.likely_mountpoint(text) == expected


def test_settings_in_odd_toml_are_read_in_full(host: Host) -> None:
    host.settings.write_text(f'"mountpoint" = "{host.mountpoint}"\nsocket = "{host.socket}"\n')
    with daemon(host.socket, REFUSED):
        assert host.run(domain(host.templates / "t.qcow2")).returncode == 1
        assert host.run(domain("/elsewhere.qcow2")).returncode == 0


def test_the_quick_look_has_the_defaults_of_the_settings() -> None:
    assert config.Settings().mountpoint == Path(hook.DEFAULT_MOUNTPOINT)
    assert Path(hook.DEFAULT_SETTINGS) == config.DEFAULT_PATH
    assert config.ENVIRONMENT == hook.ENVIRONMENT


def install(host: Host, home: Path | str) -> Path:
    """A copy with a line that says where ddfs lies, as the script itself explains."""
    text = SCRIPT.read_text()
    text = re.sub(r"(?m)^ddfs_home=.*$", f"ddfs_home='{home}'", text)
    text = re.sub(r"(?m)^ddfs_config=.*$", f"ddfs_config='{host.settings}'", text)
    host.script = host.root / "installed hook"
    host.script.write_text(text)
    host.script.chmod(0o755)
    host.environ.clear()
    return host.script


def test_an_installed_copy_needs_no_environment(host: Host) -> None:
    install(host, TOP)
    with daemon(host.socket, REFUSED):
        done = host.run(domain(host.templates / "t.qcow2"))
    assert "42 % here" in done.stderr


def test_a_symlink_to_the_checkout_finds_it(host: Host) -> None:
    host.script = host.root / "link"
    host.script.symlink_to(SCRIPT)
    with daemon(host.socket, REFUSED):
        assert "42 % here" in host.run(domain(host.templates / "t.qcow2")).stderr


def test_without_ddfs_only_domains_that_name_the_mountpoint_are_refused(host: Host) -> None:
    install(host, host.root / "gone")
    assert host.run(domain("/elsewhere.qcow2")).returncode == 0
    done = host.run(domain(host.templates / "t.qcow2"))
    assert done.returncode == 1
    assert "the hook cannot run" in done.stderr
    assert str(host.mountpoint) in done.stderr


def test_a_broken_ddfs_counts_as_none(host: Host) -> None:
    home = host.root / "broken home"
    (home / "ddfs").mkdir(parents=True)
    (home / "ddfs/hook.py").write_text("import no_such_module\n")
    install(host, home)
    assert host.run(domain("/elsewhere.qcow2")).returncode == 0
    done = host.run(domain(host.templates / "t.qcow2"))
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_a_plain_start_imports_little() -> None:
    program = (
        "import io, sys; before = set(sys.modules); sys.path.append(sys.argv[1])\n"
        "from ddfs.hook import main\n"
        "assert main(['vm1', 'prepare', 'begin', '-'], io.BytesIO(sys.argv[2].encode()), {}) == 0\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, TOP, domain("/elsewhere.qcow2")],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(ast.literal_eval(done.stdout))
    assert "ddfs.image.chain" in loaded
    heavy = {"argparse", "asyncio", "dataclasses", "email", "http", "inspect", "json", "logging"}
    heavy |= {"pathlib", "socket", "subprocess", "tomllib", "xml.etree", "ddfs.config"}
    assert not loaded & heavy
    assert len(loaded) < 60


def test_hooks_beyond_the_listen_queue_wait_for_their_turn(host: Host) -> None:
    """connect() to a full queue fails at once with EAGAIN."""
    host.wait = 5.0
    host.write_settings()
    xml = domain(host.templates / "t.qcow2")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host.socket))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(host.socket))
            waiting = threading.Thread(target=lambda: results.append(host.run(xml)))
            results: list[subprocess.CompletedProcess[str]] = []
            waiting.start()
            time.sleep(0.3)
            listener.accept()[0].close()
            connection, _ = listener.accept()
            with connection:
                read_request(connection)
                connection.sendall(ALLOWED(b""))
            waiting.join()
    assert results[0].returncode == 0
