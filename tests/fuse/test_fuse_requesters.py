from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ddfs.fuse.requesters import Requester, classify, identify


@pytest.mark.parametrize(
    ("executable", "who"),
    [
        ("/usr/bin/qemu-system-x86_64", Requester.QEMU),
        ("/usr/bin/qemu-system-x86_64 (deleted)", Requester.QEMU),
        ("/usr/libexec/qemu-kvm", Requester.QEMU),
        ("/usr/bin/kvm", Requester.QEMU),
        ("/nix/store/x/bin/.qemu-system-x86_64-wrapped", Requester.QEMU),
        ("/usr/sbin/libvirtd", Requester.LIBVIRT),
        ("/usr/sbin/virtqemud", Requester.LIBVIRT),
        ("/usr/sbin/virtstoraged", Requester.LIBVIRT),
        ("/usr/lib/libvirt/virt-aa-helper", Requester.LIBVIRT),
        ("/usr/bin/qemu-img", Requester.ANYBODY),
        ("/usr/bin/qemu-nbd", Requester.ANYBODY),
        ("/usr/bin/qemu-storage-daemon", Requester.ANYBODY),
        ("/home/kvm/bin/cat", Requester.ANYBODY),
        ("/usr/bin/libvirtd-exporter", Requester.ANYBODY),
        ("", Requester.ANYBODY),
    ],
)
def test_the_program_decides(executable: str, who: Requester) -> None:
    assert classify(executable) is who


def test_a_running_process_is_known_by_its_program(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu-system-x86_64"
    shutil.copy("/bin/sleep", qemu)
    with subprocess.Popen([str(qemu), "60"]) as process:
        try:
            assert identify(process.pid) is Requester.QEMU
            qemu.unlink()
            assert identify(process.pid) is Requester.QEMU
        finally:
            process.kill()


def test_nobody_and_ourselves_are_anybody() -> None:
    assert identify(0) is Requester.ANYBODY
    assert identify(2**22 + 1) is Requester.ANYBODY
    assert identify(os.getpid()) is Requester.ANYBODY
