"""Several hosts on one machine: for each a mount namespace with a libvirtd and a daemon of its own.

What libvirt and ddfs keep on fixed paths lies in mounts of that namespace; the directories of
the lab, and with them the control sockets, are the same for all.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lab.host import Host
from lab.libvirtd import HIDDEN, LIBVIRTD_CONF, QEMU_CONF, URI, VIRSH_SECONDS, may_use_kvm
from lab.processes import LabError, Process

# $1: a directory with the configuration, the rest the directories to hide. libvirtd is then
# the process that the namespace lives by.
_ENTER: Final = """
set -e
files=$1; shift
# As on a systemd host, and so that what libvirt moves aside for a QEMU can be moved back.
mount --make-rshared /
for directory; do mkdir -p "$directory"; mount -t tmpfs ddfs-lab "$directory"; done
mkdir -p /etc/libvirt/hooks; cp "$files"/*.conf /etc/libvirt/
printf '#!/bin/sh\\n' > /etc/libvirt/hooks/qemu; chmod 755 /etc/libvirt/hooks/qemu
[ ! -e "$files/no-kvm" ] || mount --bind "$files/no-kvm" /dev/kvm
exec libvirtd --pid-file /run/libvirt/libvirtd.pid
"""


class Node:
    """One host: ``ddfs`` is its daemon, whose commands may be given from anywhere."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        """*settings* as for :class:`Host`."""
        directory.mkdir()
        self.name = directory.name
        (directory / "libvirtd.conf").write_text(LIBVIRTD_CONF)
        (directory / "qemu.conf").write_text(QEMU_CONF)
        if not may_use_kvm():
            (directory / "no-kvm").touch(mode=0o000)
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        self._libvirtd = Process(
            [*command, directory, *HIDDEN], directory.parent / f"{self.name}.log"
        )
        self._libvirtd.wait_until(self._answers, "libvirtd answers")
        self.ddfs = Host(directory / "host", **settings)
        self.ddfs.command = [*self._inside(), *self.ddfs.command]

    def _inside(self) -> list[str]:
        return ["nsenter", "--target", str(self._libvirtd.pid), "--mount", "--"]

    def _answers(self) -> bool:
        return self.virsh("version", check=False).returncode == 0

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in the host's namespace."""
        done = subprocess.run(
            [*self._inside(), *map(str, command)],
            capture_output=True, text=True, timeout=VIRSH_SECONDS, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {command}: {done.stderr.strip()}")
        return done

    def virsh(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One virsh call."""
        return self.run("virsh", "-q", "-c", URI, *words, check=check)

    def install_hook(self, text: str) -> None:
        """In place of the one before; which one libvirtd finds is read anew each time."""
        script = 'cat > /etc/libvirt/hooks/.new && chmod 755 /etc/libvirt/hooks/.new && ' \
            'mv /etc/libvirt/hooks/.new /etc/libvirt/hooks/qemu'  # fmt: skip
        subprocess.run([*self._inside(), "sh", "-c", script], input=text, text=True, check=True)

    def domains(self) -> set[str]:
        """Those there are, running or not."""
        return set(self.virsh("list", "--all", "--name").stdout.split())

    def files(self) -> set[str]:
        """What lies in the pool of disks, in primary storage and among partial files."""
        roots = (self.ddfs.vms, self.ddfs.images, self.ddfs.state / "deploying")
        return {
            str(path.relative_to(self.ddfs.directory))
            for root in roots
            for path in root.rglob("*")
            if path.is_file() and path.name != "lock" and "@" not in path.name.split(".ddfs")[0]
        } | {
            path.name
            for path in self.ddfs.images.rglob("*")
            if path.is_file() and path.parent != self.ddfs.images and "@" in path.name
        }

    def clear(self) -> None:
        """No domains and no disks, and its daemon runs, whatever a test that failed has left."""
        if self.ddfs.daemon is None or self.ddfs.daemon.returncode is not None:
            self.ddfs.serve()
        for name in self.domains():
            self.virsh("destroy", name, check=False)
            self.virsh("undefine", name, check=False)
        for path in self.ddfs.vms.iterdir():
            path.unlink()
        self.install_hook(self.ddfs.hook())

    def close(self) -> None:
        """Ends its daemon, its domains and its libvirtd; its mounts go with them."""
        with contextlib.suppress(LabError, subprocess.TimeoutExpired):
            self.clear()
        if self.ddfs.daemon is not None:
            self.ddfs.daemon.close()
        self._libvirtd.close()


@contextlib.contextmanager
def region(directory: Path, names: tuple[str, ...], **settings: Any) -> Iterator[list[Node]]:
    """Nodes whose daemons run, each with the template pool and a pool ``default`` for disks."""
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        nodes = []
        for name in names:
            node = Node(directory / name, **settings)
            stack.callback(node.close)
            nodes.append(node)
            node.ddfs.serve()
            node.install_hook(node.ddfs.hook())
            node.ddfs.ddfs("pool", "define")
            node.virsh("pool-define-as", "default", "dir", "--target", node.ddfs.vms)
            node.virsh("pool-start", "default")
        yield nodes
