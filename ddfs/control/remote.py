"""The way to the control socket of another host: through ssh, as an operator has it anyway.

OpenSSH forwards a Unix socket by itself (``-L LOCAL:REMOTE``), so that nothing has to be
installed or opened over there, and its keys and its configuration decide who may.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from ddfs import errors

# ssh asks nobody here: a password prompt in the middle of a deployment would hang it.
_OPTIONS: Final = (
    *("-nNT", "-oBatchMode=yes", "-oExitOnForwardFailure=yes", "-oConnectTimeout=10"),
    *("-oServerAliveInterval=15", "-oServerAliveCountMax=3", "-oStreamLocalBindMask=0177"),
)

# Name look-up, connection and login.
_START_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.05
_END_SECONDS: Final = 5.0

# Nothing that ssh could take for an option, or a shell for more than a word.
_ADDRESS: Final = re.compile(
    r"ssh://(?:([A-Za-z0-9_][A-Za-z0-9._-]*)@)?([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])"
    r"(?::([0-9]{1,5}))?(/[^\0\r\n:]+)"
)


@contextlib.contextmanager
def reached(address: str) -> Iterator[Path]:
    """A local path that leads to the socket at *address*, a path or an ssh address.

    Raises :class:`errors.InvalidValueError` for an address that is none, and
    :class:`errors.DaemonDownError` when ssh does not get there. On leaving, ssh is ended.
    """
    if address.startswith("/"):
        yield Path(address)
        return
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise errors.InvalidValueError(
            f"{address[:140]!r} is no way to a socket: write a path, or ssh://[USER@]HOST[:PORT]/PATH"
        )
    user, host, port, path = match.groups()
    with tempfile.TemporaryDirectory(prefix="ddfs-ssh-") as directory:
        local = Path(directory) / "ddfs.sock"
        command = [*_until_we_end(), "ssh", *_OPTIONS, f"-L{local}:{unquote(path)}"]
        command += [f"-p{port}"] if port else []
        command += [f"-l{user}"] if user else []
        with _running([*command, "--", host.strip("[]")], address) as process:
            _wait_for(local, process, address)
            try:
                yield local
            except errors.DaemonDownError as error:
                # Nobody knows our end by name.
                raise errors.DaemonDownError(str(error).replace(str(local), address)) from error


def _until_we_end() -> list[str]:
    """What ends a program when we are killed (PR_SET_PDEATHSIG), where there is setpriv(1)."""
    found = shutil.which("setpriv")
    return [found, "--pdeathsig", "TERM", "--"] if found else []


@contextlib.contextmanager
def _running(command: list[str], address: str) -> Iterator[subprocess.Popen[str]]:
    try:
        # A session of its own: Ctrl-C is for us, who still have to take things back through it.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise errors.DaemonDownError(f"{address}: ssh cannot be run: {error.strerror}") from error
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_for(local: Path, process: subprocess.Popen[str], address: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _listens(local):
        if process.poll() is not None:
            said = process.communicate()[1].strip().splitlines()
            reason = said[-1].strip() if said else f"ssh ended with {process.returncode}"
            raise errors.DaemonDownError(f"{address}: {reason}")
        if time.monotonic() > deadline:
            raise errors.DaemonDownError(f"{address}: no connection within {_START_SECONDS:.0f} s")
        time.sleep(_LOOK_SECONDS)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
