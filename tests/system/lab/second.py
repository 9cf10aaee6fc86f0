"""Another host's libvirtd, for migrations: in a mount namespace of its own, inside ours.

It sees the same disks and the same ddfs as the first; its configuration, state and hooks are
its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Final

from lab.libvirtd import LIBVIRTD_CONF, QEMU_CONF
from lab.processes import Process

NAMESPACE: Final = Path(__file__).with_name("namespace.py")

# $0 is the directory.
SCRIPT: Final = """
for pair in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt \\
            log:/var/log/libvirt; do
    mkdir -p "${pair#*:}" || exit 9
    mount -n --bind "$0/${pair%%:*}" "${pair#*:}" || exit 9
done
exec libvirtd --pid-file /run/libvirt/libvirtd.pid
"""


class SecondLibvirtd:
    """``with SecondLibvirtd(directory, hook) as second``: it answers at ``second.uri``."""

    def __init__(self, directory: Path, hook: str) -> None:
        for name in ("etc/hooks", "run", "lib", "cache", "log", "sock"):
            (directory / name).mkdir(parents=True)
        conf = LIBVIRTD_CONF + f'unix_sock_dir = "{directory}/sock"\nhost_uuid = "{uuid.uuid4()}"\n'
        (directory / "etc/libvirtd.conf").write_text(conf)
        # Both hosts label the same files, which no real ones do.
        (directory / "etc/qemu.conf").write_text(f"{QEMU_CONF}remember_owner = 0\n")
        script = directory / "etc/hooks/qemu"
        script.write_text(hook)
        script.chmod(0o755)
        self.uri = f"qemu+unix:///system?socket={directory}/sock/libvirt-sock"
        self._directory = directory
        self._process: Process | None = None

    def __enter__(self) -> SecondLibvirtd:
        command = [sys.executable, NAMESPACE, "sh", "-c", SCRIPT, self._directory]
        environ = {**os.environ}
        environ.pop("DDFS_LAB_NAMESPACE", None)
        process = self._process = Process(command, self._directory / "libvirtd.log", environ)
        process.wait_until(self._answers, "the second libvirtd answers")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.close()

    def virsh(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """One call, which may fail."""
        command = ["virsh", "-q", "-c", self.uri, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)

    def _answers(self) -> bool:
        return self.virsh("version").returncode == 0
