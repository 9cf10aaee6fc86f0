"""One clear error that says what to do, and nothing lost."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab.host import Host
from lab.metalink import sha256_of
from lab.processes import wait_until
from lab.site import MIB, Published, Site

# errors.py: the caller's fault, and this host's.
EXIT_REQUEST = 2
EXIT_HOST = 4


@contextlib.contextmanager
def mounted(path: Path, *options: str) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-n", *options, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-n", "-l", path], check=True)


def says_why(host: Host, code: int, *words: str) -> None:
    """A daemon that does not come up: its exit code, and one line with all *words*."""
    before = len(host.log.read_text()) if host.log.exists() else 0
    process = host.spawn()
    assert process.wait() == code, host.tail()
    said = host.log.read_text()[before:]
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("ddfs: ")]
    assert len(errors) == 1, said
    for word in words:
        assert word in errors[0]


def test_an_unknown_key_in_the_settings(directory: Path) -> None:
    with Host(directory / "host") as host:
        text = host.settings.read_text()
        host.settings.write_text(text.replace("[gate]\nwait", "[gate]\nwiat"))
        says_why(host, EXIT_REQUEST, str(host.settings), "gate.wiat")


def test_a_second_daemon(host: Host, small: Published) -> None:
    host.ddfs("template", "add", "small", small.source)
    assert host.daemon is not None
    says_why(host, EXIT_HOST, str(host.daemon.pid))
    assert host.is_mounted()
    host.ddfs("prefetch", "small")
    assert sha256_of(host.templates / "small.qcow2") == small.sha256


def test_the_same_primary_storage_for_two_daemons(directory: Path, host: Host) -> None:
    with Host(directory / "other", images=host.images) as other:
        says_why(other, EXIT_HOST, str(host.images.parent))
        assert not other.is_mounted()


def test_the_socket_is_in_use(directory: Path) -> None:
    with Host(directory / "host") as host, socket.socket(socket.AF_UNIX) as listener:
        host.socket.parent.mkdir()
        listener.bind(str(host.socket))
        listener.listen()
        says_why(host, EXIT_HOST, str(host.socket))
        assert host.socket.is_socket()
        assert not host.is_mounted()


def test_the_socket_of_a_dead_daemon_is_no_obstacle(host: Host) -> None:
    host.kill()
    assert host.socket.is_socket()
    host.serve()


def test_the_state_directory_is_read_only(directory: Path) -> None:
    with Host(directory / "host") as host:
        with mounted(host.state, "-t", "tmpfs", "-o", "ro", "none"):
            says_why(host, EXIT_HOST, str(host.state))
            assert not host.is_mounted()
        host.serve()


def test_a_broken_catalogue_is_left_as_it_is(host: Host, small: Published) -> None:
    host.ddfs("template", "add", "small", small.source)
    host.stop()
    (catalogue,) = host.state.glob("*.db")
    whole = catalogue.read_bytes()
    broken = b"this is no database" + whole[19:]
    catalogue.write_bytes(broken)
    says_why(host, EXIT_HOST, str(catalogue))
    assert catalogue.read_bytes() == broken
    catalogue.write_bytes(whole)
    host.serve()
    assert host.template("small")["state"] == "not-downloaded"


def test_the_mountpoint_is_taken(directory: Path) -> None:
    with Host(directory / "host") as host, mounted(host.mountpoint, "-t", "tmpfs", "none"):
        says_why(host, EXIT_HOST, str(host.mountpoint))


def test_the_primary_storage_is_missing(directory: Path) -> None:
    with Host(directory / "host") as host:
        host.images.rmdir()
        says_why(host, EXIT_HOST, str(host.images))
        host.images.mkdir()
        host.serve()


def test_the_disk_is_full(directory: Path, fast_site: Site) -> None:
    image = fast_site.publish("large", size=24 * MIB)
    images = directory / "full"
    with mounted(images, "-t", "tmpfs", "-o", "size=16m,mode=0755", "none"):
        with Host(directory / "host", images=images) as host:
            host.serve()
            host.ddfs("template", "add", "large", image.source)
            failed = host.ddfs("prefetch", "large", check=False)
            assert failed.returncode != 0
            lines = failed.stderr.strip().splitlines()
            assert lines[-1].startswith("ddfs: ")
            assert "room" in lines[-1] or "full" in lines[-1]
            assert "Traceback" not in host.log.read_text()
            subprocess.run(["mount", "-n", "-o", "remount,size=256m", images], check=True)
            host.ddfs("prefetch", "large")
            assert sha256_of(host.published("large")) == image.sha256


def test_a_file_of_that_name_in_primary_storage_is_never_overwritten(
    host: Host, small: Published
) -> None:
    taken = host.images / f"small@{small.sha256[:12]}.qcow2"
    taken.write_bytes(b"somebody's work")
    host.ddfs("template", "add", "small", small.source)
    failed = host.ddfs("prefetch", "small", check=False)
    assert failed.returncode != 0
    assert str(taken) in failed.stderr
    assert taken.read_bytes() == b"somebody's work"
    taken.unlink()
    host.ddfs("prefetch", "small")
    assert sha256_of(host.published("small")) == small.sha256


def test_a_command_without_a_daemon_says_how_to_start_it(directory: Path) -> None:
    with Host(directory / "host") as host:
        failed = host.ddfs("status", check=False)
        assert failed.returncode == EXIT_HOST
        (line,) = failed.stderr.splitlines()
        assert line.startswith("ddfs: ")
        assert "ddfs serve" in line


def test_a_published_file_that_somebody_removed_is_fetched_again(
    host: Host, small: Published
) -> None:
    host.ddfs("template", "add", "small", small.source)
    host.ddfs("prefetch", "small")
    published = host.published("small")
    subprocess.run(["chattr", "-i", published], check=False, capture_output=True)
    published.unlink()
    host.stop()
    host.serve()
    wait_until(lambda: host.template("small")["state"] == "not-downloaded", "it is noticed")
    host.ddfs("prefetch", "small")
    assert sha256_of(host.published("small")) == small.sha256
