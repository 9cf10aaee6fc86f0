"""What ``ddfs doctor`` looks at outside of ddfs: libvirtd's view, QEMU's user, mirrors, clocks."""

from __future__ import annotations

import grp
import http.client
import os
import pwd
import re
import ssl
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

QEMU_CONF: Final = Path("/etc/libvirt/qemu.conf")
PROC: Final = Path("/proc")

# Debian's and Fedora's defaults for `user` in qemu.conf.
_QEMU_USERS: Final = ("libvirt-qemu", "qemu")

_DAEMONS: Final = frozenset({"libvirtd", "virtqemud"})

# Somebody waits for the answers; a mirror that takes longer is no use either.
MIRROR_SECONDS: Final = 5.0
MAX_SERVERS: Final = 32

# Certificates and the rests of fetches tolerate less than this comes to.
MAX_CLOCK_SECONDS: Final = 300.0


def libvirt_daemons(proc: Path = PROC) -> list[int]:
    """The process ids of libvirt's daemons that start domains."""
    found = []
    for process in proc.iterdir():
        if process.name.isdigit():
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            if name in _DAEMONS:
                found.append(int(process.name))
    return sorted(found)


def started_at(pid: int, proc: Path = PROC) -> float | None:
    """When a process was started, in POSIX seconds (proc(5): starttime in ticks since boot)."""
    try:
        ticks = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
        boot = re.search(r"^btime (\d+)$", (proc / "stat").read_text(), re.MULTILINE)
    except (OSError, ValueError, IndexError):
        return None
    return int(boot[1]) + ticks / os.sysconf("SC_CLK_TCK") if boot else None


def qemu_user(conf: Path = QEMU_CONF) -> pwd.struct_passwd | None:
    """Who runs QEMU, as qemu.conf says, else the distribution's user for it."""
    try:
        stated = re.findall(r'^\s*user\s*=\s*"\+?([^"]+)"', conf.read_text(), re.MULTILINE)
    except OSError:
        stated = []
    for name in (*stated[-1:], *_QEMU_USERS):
        try:
            return pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def closed_directory(path: Path, user: pwd.struct_passwd) -> Path | None:
    """The first of the directories down to *path* that *user* may not enter, None if none."""
    if user.pw_uid == 0:
        return None
    groups = {user.pw_gid, *(g.gr_gid for g in grp.getgrall() if user.pw_name in g.gr_mem)}
    for directory in (*reversed(path.parents), path):
        try:
            status = directory.stat()
        except OSError:
            return directory
        if status.st_uid == user.pw_uid:
            bit = stat.S_IXUSR
        elif status.st_gid in groups:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not status.st_mode & bit:
            return directory
    return None


def servers_of(addresses: Iterable[str]) -> list[str]:
    """The web servers among *addresses*, each once, as ``https://host:port``."""
    found: dict[str, None] = {}
    for address in addresses:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname:
            host = parts.netloc.rpartition("@")[2]
            found[f"{parts.scheme}://{host}"] = None
    return list(found)[:MAX_SERVERS]


def ask_servers(servers: Iterable[str]) -> Iterator[tuple[str, str | None, float | None]]:
    """For each server: why it cannot be reached, None if it can; and by how many seconds its
    clock is before ours, None if it does not tell.
    """
    servers = list(servers)
    if servers:
        with ThreadPoolExecutor(max_workers=len(servers)) as threads:
            yield from threads.map(_ask, servers)


def _ask(server: str) -> tuple[str, str | None, float | None]:
    parts = urlsplit(server)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=MIRROR_SECONDS)
    try:
        connection.request("HEAD", "/")
        answer = connection.getresponse()
    except ssl.SSLCertVerificationError as error:
        return server, f"its certificate is not good: {error.verify_message}", None
    except (OSError, http.client.HTTPException, ValueError) as error:
        return server, str(error) or type(error).__name__, None
    finally:
        connection.close()
    try:
        told = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (TypeError, ValueError, KeyError):
        return server, None, None
    return server, None, told - time.time()
