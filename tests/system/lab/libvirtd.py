"""A libvirtd of one's own on the usual paths, which in here are nobody else's.

Its configuration, state, logs and sockets are empty tmpfs mounts over libvirt's directories,
made inside :mod:`lab.namespace`; the host's libvirt, which may well be running, sees nothing
of it. No systemd, no D-Bus and no cgroups are in sight of it, so that it registers no machine
anywhere; it starts no network.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Final

from lab import namespace
from lab.domain import Domain
from lab.processes import LabError, Process

URI: Final = "qemu:///system"

# Those that libvirt uses, and the bus over which it would reach systemd-machined.
HIDDEN: Final = (
    "/etc/libvirt",
    "/run/libvirt",
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/run/dbus",
)

# Debian's.
QEMU_USER: Final = "libvirt-qemu"

HOOKS: Final = Path("/etc/libvirt/hooks")

LIBVIRTD_CONF: Final = """\
unix_sock_group = "root"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_level = 3
log_outputs = "3:stderr"
"""

# stdio_handler "file" needs no virtlogd.
QEMU_CONF: Final = """\
security_driver = "none"
stdio_handler = "file"
"""

# Far longer than any call here takes, also with a hook that waits for its whole window.
VIRSH_SECONDS: Final = 90


class Libvirtd:
    """``with Libvirtd(logs) as libvirtd``: running inside; its domains are gone afterwards."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._process: Process | None = None

    def __enter__(self) -> Libvirtd:
        if not namespace.is_inside():
            raise LabError("a libvirtd of one's own needs lab.namespace around it")
        _hide_the_hosts()
        if not may_use_kvm():
            _hide_kvm(self._logs / "no-kvm")
        Path("/etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF)
        Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
        HOOKS.mkdir()
        # libvirtd looks for hooks when it starts, and at a SIGHUP; which one it finds is read
        # anew each time.
        self.install_hook("#!/bin/sh\n")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(LabError, subprocess.TimeoutExpired):
                self.remove_domains()
            self._process.close()

    def start(self) -> None:
        """Returns when it answers."""
        command = ["libvirtd", "--pid-file", "/run/libvirt/libvirtd.pid"]
        process = self._process = Process(command, self._logs / "libvirtd.log")
        process.wait_until(self._answers, "libvirtd answers")

    def stop(self) -> None:
        """Its domains go on running, as they do on a real host."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """``kill -9``; its domains go on running, too."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restore(self) -> None:
        """It runs, without domains and pools, whatever a test that failed has left."""
        try:
            self._run_empty()
        except (LabError, subprocess.TimeoutExpired):
            self.kill()
            self._run_empty()

    def _run_empty(self) -> None:
        if self._process is None or self._process.returncode is not None:
            self.start()
        self.remove_domains()
        self.remove_pools()

    def install_hook(self, text: str) -> None:
        """Puts a script where libvirt runs it, in place of the one before."""
        new = HOOKS / ".qemu.new"
        new.write_text(text)
        new.chmod(0o755)
        new.rename(HOOKS / "qemu")

    def is_kvm_usable(self) -> bool:
        """Whether domains may have the hypervisor "kvm" here."""
        return self.virsh("domcapabilities", "--virttype", "kvm", check=False).returncode == 0

    def virsh(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One virsh call; LabError with what it said when it failed and *check* is true."""
        command = ["virsh", "-q", "-c", URI, *map(str, arguments)]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=VIRSH_SECONDS, check=False
        )
        if check and result.returncode != 0:
            words = shlex.join(map(str, arguments))
            raise LabError(f"virsh {words}: {result.stderr.strip()}\n{self._state()}")
        return result

    def _state(self) -> str:
        if self._process is None:
            return "libvirtd is stopped"
        if self._process.returncode is None:
            return "libvirtd runs"
        return f"libvirtd ended with {self._process.returncode}\n{self._process.tail()}"

    def define(self, domain: Domain, directory: Path) -> None:
        path = directory / f"{domain.name}.xml"
        path.write_text(domain.xml)
        self.virsh("define", path)

    def qemu_pid(self, name: str) -> int:
        """The process of a running domain."""
        return int(Path(f"/run/libvirt/qemu/{name}.pid").read_text())

    def remove_domains(self) -> None:
        """Destroys and undefines all."""
        # By their numbers: a name may be anything, also what looks like an option.
        for uuid in self.virsh("list", "--uuid").stdout.split():
            self.virsh("destroy", uuid, check=False)
        for uuid in self.virsh("list", "--all", "--uuid").stdout.split():
            self.virsh("undefine", uuid, check=False)

    def remove_pools(self) -> None:
        for name in self.virsh("pool-list", "--all", "--name").stdout.split():
            self.virsh("pool-destroy", name, check=False)
            self.virsh("pool-undefine", name, check=False)

    def _answers(self) -> bool:
        return self.virsh("version", check=False).returncode == 0


def _hide_the_hosts() -> None:
    for directory in HIDDEN:
        if directory == "/run/dbus" and not os.path.isdir(directory):
            continue
        # /run/libvirt alone may be missing: on a host whose libvirtd never ran.
        os.makedirs(directory, exist_ok=True)
        namespace.mount("ddfs-lab", directory, "tmpfs", 0)
        os.chmod(directory, 0o755)
    # Hidden would not do: libvirt looks for cgroups in the list of mounts.
    while os.path.ismount("/sys/fs/cgroup"):
        subprocess.run(["umount", "-n", "--recursive", "--lazy", "/sys/fs/cgroup"], check=True)
    if shutil.which("libvirtd") is None:
        raise LabError("libvirtd is not installed; run contrib/setup")


def may_use_kvm() -> bool:
    """Whether libvirt's QEMU user may. On Debian it may, through a group."""
    command = ["setpriv", "--reuid", QEMU_USER, "--regid", QEMU_USER, "--init-groups"]
    test = [*command, "test", "-r", "/dev/kvm", "-a", "-w", "/dev/kvm"]
    return subprocess.run(test, check=False, capture_output=True).returncode == 0


def _hide_kvm(cover: Path) -> None:
    """libvirt asks QEMU as root, and then the device as QEMU's user; where they disagree it
    finds its knowledge of QEMU outdated at every look, and asks again: ten seconds a domain.
    """
    if os.path.exists("/dev/kvm"):
        cover.touch(mode=0o000)
        namespace.mount(str(cover), "/dev/kvm", None, namespace.MS_BIND)
