"""A libvirtd of the test's own, in namespaces of its own, with its socket where we see it.

Its configuration and state are directories of the test, so that they outlive a restart. The
host's libvirt, which may well be running, sees nothing of it.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import libvirt
import pytest

NAMESPACE = Path(__file__).parents[1] / "system" / "lab" / "namespace.py"

# $0 is the directory.
SCRIPT = """
for pair in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt \
            log:/var/log/libvirt; do
    mkdir -p "${pair#*:}" || exit 9
    mount -n --bind "$0/${pair%%:*}" "${pair#*:}" || exit 9
done
exec libvirtd --pid-file /run/libvirt/libvirtd.pid
"""

LIBVIRTD_CONF = """
unix_sock_dir = "{sockets}"
unix_sock_group = "root"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:stderr"
"""

QEMU_CONF = """
security_driver = "none"
stdio_handler = "file"
"""


class PrivateLibvirtd:
    def __init__(self, directory):
        self.directory = directory
        for name in ("etc", "run", "lib", "cache", "log", "sockets"):
            (directory / name).mkdir()
        sockets = directory / "sockets"
        (directory / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF.format(sockets=sockets))
        (directory / "etc/qemu.conf").write_text(QEMU_CONF)
        self.uri = f"qemu+unix:///system?socket={sockets}/libvirt-sock"
        self.process = None

    def start(self):
        command = [sys.executable, str(NAMESPACE), "sh", "-c", SCRIPT, str(self.directory)]
        with open(self.directory / "stderr", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 90
        while not self.answers():
            assert self.process.poll() is None, (self.directory / "stderr").read_text()
            assert time.monotonic() < deadline, (self.directory / "stderr").read_text()
            time.sleep(0.05)

    def kill(self):
        """As kill -9 would; the kernel ends all that it started."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 90
        while self.answers():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def answers(self):
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.open(self.uri).close()
            return True
        return False

    def virsh(self, *arguments):
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def private_libvirtd(directory):
    if os.geteuid() != 0:
        pytest.skip("a libvirtd of one's own takes root")
    daemon = PrivateLibvirtd(directory)
    daemon.start()
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
