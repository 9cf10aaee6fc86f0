"""The real hook as libvirt runs it, against a real Unix socket."""

import ast
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from hook_host import (
    ALLOWED,
    REFUSED,
    SCRIPT,
    TOP,
    Host,
    answer_with,
    daemon,
    domain,
    overlay,
    question,
    read_request,
    sealed,
)


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


@pytest.mark.parametrize("arguments", [[], ["vm1"], ["vm1", "prepare"]])
def test_too_few_arguments_are_one_line(arguments: list[str]) -> None:
    done = subprocess.run([SCRIPT, *arguments], stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert b"usage: " in done.stderr


@pytest.mark.parametrize("arguments", [["", "", ""], ["a", "b", "c", "d", "e"]])
def test_what_a_newer_libvirt_may_say_succeeds(arguments: list[str]) -> None:
    done = subprocess.run([SCRIPT, *arguments], stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_by_hand_it_waits_for_no_terminal() -> None:
    """libvirt gives it a pipe."""
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [SCRIPT, "vm1", "prepare", "begin", "-"], stdin=theirs, capture_output=True, timeout=90
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert b"ddfs gate --domain vm1" in done.stderr


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
            {"path": str(host.templates / "cd.iso"), "writable": False, "optional": True}
            | {"kind": "file"},
        ],
    }


def test_a_kernel_is_called_so(host: Host) -> None:
    boot = f"<os><kernel>{host.templates}/k.img</kernel></os></domain>"
    with daemon(host.socket, ALLOWED) as requests:
        assert host.run(domain().replace("</domain>", boot)).returncode == 0
    assert question(requests[0])["files"] == [
        {"path": f"{host.templates}/k.img", "writable": False, "optional": False, "boot": True}
    ]


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


def test_a_writable_disk_that_may_be_a_published_template_is_asked_about(host: Host) -> None:
    disk = sealed(host.root / "disk.img")
    with daemon(host.socket, REFUSED) as requests:
        assert host.run(domain(disk, options="")).returncode == 1
        assert host.run(domain(disk)).returncode == 0, "read only"
    (request,) = requests
    status = disk.stat()
    assert question(request)["files"] == [
        {"path": str(disk), "writable": True, "kind": "file"}
        | {"device": status.st_dev, "inode": status.st_ino}
    ]


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
        done = host.run(domain(host.templates / "t.qcow2"))
    assert done.returncode == 1
    assert expected in done.stderr


def test_a_body_that_ends_with_the_connection_is_read(host: Host) -> None:
    with daemon(host.socket, lambda request: b'HTTP/1.1 200 OK\r\n\r\n{"allowed": true}'):
        assert host.run(domain(host.templates / "t.qcow2")).returncode == 0


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
