"""What the hook decides while no daemon answers, or with settings that are broken."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hook_host import REFUSED, SCRIPT, Host, daemon, domain, overlay, sealed

from ddfs import config, hook


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


def test_without_a_daemon_a_template_on_a_device_is_no_file(
    host: Host, make_device: Callable[..., Path]
) -> None:
    image = host.root / "volume"
    image.write_bytes(bytes(1024 * 1024))
    template = host.templates / "t.qcow2"
    template.symlink_to(make_device(image))
    refused = host.run(domain(template))
    assert refused.returncode == 1
    assert f"give the domain <disk type='block'> with <source dev='{template}'/>" in refused.stderr
    assert host.run(domain(template).replace("source file=", "source dev=")).returncode == 0
    assert host.run(domain(overlay(host.root / "top.qcow2", template))).returncode == 0
    file = publish(host, "f.qcow2")
    refused = host.run(domain(file).replace("source file=", "source dev="))
    assert (refused.returncode, "in a file, not on a block device" in refused.stderr) == (1, True)


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


def test_without_a_daemon_only_what_is_called_as_published_templates_are_is_refused(
    host: Host,
) -> None:
    assert host.run(domain(sealed(host.root / "disk.img"), options="")).returncode == 0
    published = sealed(host.root / "debian-12@0123456789ab.qcow2")
    done = host.run(domain(published, options=""))
    assert done.returncode == 1
    assert "make the disk <readonly/>" in done.stderr


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
