"""What qemu-img is told about an image in Ceph, and who gets to see its key."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.image import rbd
from ddfs.model import ImageFormat, PublishedFile, RbdPool

KEY = b"\x01\x00secret\xff"
POOL = RbdPool("vms", ("192.0.2.1", "[2001:db8::1]:6789"), "libvirt", KEY)
FILE = PublishedFile("/p/a, 'b'.qcow2", 1, 2, 3, 4)
VOLUME = PublishedFile("/dev/loop0p1", 1, 0, 1_000_448, 4)


def nothing() -> None:
    """Nobody cancels."""


def source_of(words: list[str]) -> object:
    return json.loads(words[-2].removeprefix("json:"))


def test_what_qemu_img_is_told() -> None:
    words = rbd.arguments(FILE, ImageFormat.QCOW2, POOL, "a,b=c", "/dev/fd/7")
    below = {"driver": "file", "filename": "/p/a, 'b'.qcow2"}
    assert source_of(words) == {"driver": "qcow2", "file": below}
    assert words[-1] == (
        "driver=raw,file.driver=rbd,file.pool=vms,file.image=a,,b=c,file.conf=/dev/fd/7,"
        "file.user=libvirt"
    )
    assert {"-n", "--target-is-zero", "--target-image-opts"} < set(words)
    anybody = rbd.arguments(FILE, ImageFormat.QCOW2, RbdPool("vms", ("h",)), "i", "/c")
    assert "user" not in anybody[-1]


def test_a_raw_device_ends_where_its_template_does() -> None:
    raw = source_of(rbd.arguments(VOLUME, ImageFormat.RAW, POOL, "i", "/c"))
    below = {"driver": "host_device", "filename": "/dev/loop0p1"}
    assert raw == {"driver": "raw", "file": below, "size": 1_000_448}
    packed = source_of(rbd.arguments(VOLUME, ImageFormat.QCOW2, POOL, "i", "/c"))
    assert packed == {"driver": "qcow2", "file": below}


def test_the_configuration_is_what_libvirt_tells_librados() -> None:
    lines = rbd.configuration(POOL).splitlines()
    assert lines[:2] == ["[global]", "mon_host = 192.0.2.1,[2001:db8::1]:6789"]
    assert {"auth_client_required = cephx", f"key = {base64.b64encode(KEY).decode()}"} < set(lines)
    options = (("rados_osd_op_timeout", "5"),)
    lines = rbd.configuration(RbdPool("vms", ("h",), options=options)).splitlines()
    assert "auth_client_required = none" in lines
    assert not any(line.startswith("key") for line in lines)
    assert lines[-1] == "rados_osd_op_timeout = 5"


@pytest.mark.parametrize(
    ("monitors", "name", "options"),
    [
        ((), "vms", ()),
        (("h\nkey = x",), "vms", ()),
        (("h,i",), "vms", ()),
        (("h",), "vms/other", ()),
        (("h",), "", ()),
        (("h",), "vms", (("a b", "1"),)),
        (("h",), "vms", (("debug_ms", "1\n[client]"),)),
    ],
)
def test_what_would_be_another_line_of_the_configuration_is_refused(
    monitors: tuple[str, ...], name: str, options: tuple[tuple[str, str], ...]
) -> None:
    with pytest.raises(errors.InvalidValueError, match="an rbd pool with"):
        RbdPool(name, monitors, "u", KEY, options)


def test_a_key_is_in_no_repr() -> None:
    assert "x00secret" not in repr(POOL)


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A qemu-img that speaks to no Ceph."""
    (directory / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)


def copy() -> None:
    rbd.copy(FILE, ImageFormat.QCOW2, POOL, "i", nothing)


def test_the_key_comes_through_memory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        'for last; do :; done; conf="${last#*file.conf=}"; cat "${conf%%,*}" > "$0.conf"\n'
        'echo "$*" > "$0.words"'
    )
    install(tmp_path, monkeypatch, script)
    copy()
    assert (tmp_path / "qemu-img.conf").read_text() == rbd.configuration(POOL)
    assert base64.b64encode(KEY).decode() not in (tmp_path / "qemu-img.words").read_text()


def test_bytes_are_written_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "for word; do case $word in json:*) json=$word;; esac; done\n"
        'path=${json#*filename\\": \\"}; cat "${path%%\\"*}" > "$0.data"'
    )
    install(tmp_path, monkeypatch, script)
    rbd.write(b"a seed" * 1000, POOL, "i", nothing)
    assert (tmp_path / "qemu-img.data").read_bytes() == b"a seed" * 1000


@pytest.mark.parametrize(
    ("script", "kind", "text"),
    [
        ("echo error writing: No space left on device >&2; exit 1", errors.StorageFullError, "No"),
        ("echo \"Unknown driver 'rbd'\" >&2; exit 1", errors.StorageError, "qemu-block-extra"),
        ("exit 3", errors.StorageError, "^vms/i: qemu-img convert: exit status 3$"),
        ("echo one >&2; echo two >&2; exit 1", errors.StorageError, "convert: one two$"),
    ],
)
def test_what_goes_wrong_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    kind: type[errors.DdfsError],
    text: str,
) -> None:
    install(tmp_path, monkeypatch, script)
    with pytest.raises(errors.DdfsError, match=text) as caught:
        copy()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_a_copy_that_nobody_wants_any_more_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, 'echo $$ > "$0.pid"; exec sleep 600')

    def cancel() -> None:
        if (tmp_path / "qemu-img.pid").exists():
            raise InterruptedError

    began = time.monotonic()
    with pytest.raises(InterruptedError):
        rbd.copy(FILE, ImageFormat.QCOW2, POOL, "i", cancel)
    assert time.monotonic() - began < 60
    pid = int((tmp_path / "qemu-img.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
