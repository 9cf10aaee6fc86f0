"""Runs a command in mount and process namespaces of its own, so that nothing of it outlives it.

Whatever the command mounts is seen by nobody else, and when it ends, also by ``kill -9`` of
this program, the kernel ends every process in there and drops every mount: a libvirtd, its
QEMU processes and a FUSE mount leave nothing behind on the host.

``unshare --fork --kill-child --mount-proc`` comes near, but blocks SIGTERM while it waits,
and its first process does not reap: libvirt takes a QEMU that ended and was not reaped for
one that cannot be killed.

Three processes: this one waits outside; its child is process 1 inside, which mounts and
reaps; the command is process 2. Run it as ``python namespace.py COMMAND ARGUMENT…``, as
root. Standard library only, no import of its own package.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

# sched.h, sys/mount.h, sys/prctl.h
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWPID: Final = 0x20000000
MS_NOSUID_NODEV_NOEXEC: Final = 2 | 4 | 8
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SHARED: Final = 1 << 20
PR_SET_PDEATHSIG: Final = 1

# Says which mount namespace was made for us. The number is compared, so that a variable that
# somebody inherited outside of it deceives nobody.
MARK: Final = "DDFS_LAB_NAMESPACE"

FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# siginfo's si_code for "kill() by a process". The terminal's own Ctrl-C has SI_KERNEL and
# reaches every process of the group anyway: passing it on would deliver it twice.
SI_USER: Final = 0

_libc: Final = ctypes.CDLL(None, use_errno=True)


def is_inside() -> bool:
    """Whether this process lives in namespaces that :func:`main` made."""
    return os.environ.get(MARK) == os.readlink("/proc/self/ns/mnt")


def enter(command: Sequence[str] = ()) -> None:
    """Goes on inside: replaces this process by this module running *command* (default: the
    command that this interpreter was started with). Returns only if we are inside already.
    """
    if is_inside():
        return
    command = command or [sys.executable, *sys.orig_argv[1:]]
    os.execv(sys.executable, [sys.executable, "-I", "-S", str(Path(__file__)), *command])


def main(command: Sequence[str]) -> NoReturn:
    """Runs *command* inside and ends as it ended; death by a signal is 128 + its number."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWPID), "unshare")
    first = os.fork()
    if first == 0:
        _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        _mount_all()
        os._exit(_wait_for(_spawn(command)))
    os._exit(_wait_for(first))


def _mount_all() -> None:
    # Nothing goes back to the host. Shared among ourselves, because the root of a systemd
    # host is: only so does the end of a mount reach the namespace that libvirt makes for a QEMU.
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID_NODEV_NOEXEC)
    mount(None, "/", None, MS_REC | MS_SHARED)


def _spawn(command: Sequence[str]) -> int:
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*FORWARDED, signal.SIGCHLD})
        os.environ[MARK] = os.readlink("/proc/self/ns/mnt")
        try:
            os.execvp(command[0], command)
        except OSError as error:
            sys.stderr.write(f"{command[0]}: {error.strerror}\n")
            os._exit(127)
    return pid


def _wait_for(child: int) -> int:
    """Reaps whoever ends, passes signals on to *child*, returns its exit code."""
    while True:
        info = signal.sigwaitinfo({*FORWARDED, signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD:
            if info.si_code == SI_USER:
                os.kill(child, info.si_signo)
            continue
        # One SIGCHLD may stand for several that ended.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if pid == 0:
                break


def mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    """mount(2): the program of that name leaves notes of its own in the host's /run/mount."""
    encoded = [text.encode() if text is not None else None for text in (source, target, kind)]
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), None), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        sys.stderr.write(f"{what}: {os.strerror(code)}; run it as root\n")
        os._exit(126)


if __name__ == "__main__":
    main(sys.argv[1:])
