"""What ``hooks/qemu`` runs: may this domain start?

libvirt waits for the answer with the domain's lock held, so all of it is bounded: the XML,
the walk through the images, and the daemon's answer. libvirt is never called. Nothing is
ever written to standard output, because libvirt would take it for XML in some operations.

Standard library only, and little of it: libvirt starts this for every domain of the host,
most of which have nothing to do with ddfs. The settings, ``json`` and ``socket`` are
imported when there is something to ask.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

from ddfs.image import chain
from ddfs.image.domain import MAX_XML_BYTES, wrong_kind

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from ddfs import config

# Exit codes: libvirt refuses the start for anything but 0.
ALLOW: Final = 0
REFUSE: Final = 1

# The daemon closes its window after gate.wait seconds; its answer may take this much longer.
GRACE_SECONDS: Final = 5.0

# An answer is a sentence in JSON. Anything longer is no answer of ours.
MAX_ANSWER_BYTES: Final = 64 * 1024

# libvirt shows all of it in one error; a sentence of ours has some 200 characters.
_MAX_MESSAGE: Final = 2000

# What QEMU calls the formats whose names in the pool end so.
_QEMU_FORMATS: Final = {"qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx"}

# libvirt opens these for writing, to lock them while it notes their owner (its "metadata lock").
_BOOT_ROLES: Final = ("kernel", "initrd", "dtb")

# How published templates are called (ddfs.model.Template.published_name): all there is to know
# one by while no daemon runs.
_PUBLISHED_NAME: Final = re.compile(r"@[0-9a-f]{12}\.[a-z0-9]+$")

# As in ddfs.config, which would take half of the hook's time to import; a test compares.
ENVIRONMENT: Final = "DDFS_CONFIG"
DEFAULT_SETTINGS: Final = "/etc/ddfs/ddfs.toml"
DEFAULT_MOUNTPOINT: Final = "/srv/ddfs"


class _NoAnswerError(Exception):
    """Nobody answered on the control socket; the text says why."""


class _RefusedError(Exception):
    """The domain may not start; the text is for whoever tried."""


def main(
    argv: Sequence[str],
    stdin: BinaryIO,
    environ: Mapping[str, str],
    *,
    pools: chain.PoolTargets | None = None,
) -> int:
    """Answer libvirt's call ``NAME OPERATION SUB-OPERATION EXTRA`` with an exit code.

    0 for everything but ``prepare begin``, and for a domain that uses nothing of ddfs,
    whatever the state of daemon and settings. A refusal is 1, with one line on standard
    error. (Too few words are exit 2 of the script; libvirt never gives them.)
    """
    if tuple(argv[1:3]) != ("prepare", "begin"):
        return ALLOW
    xml = stdin.read(MAX_XML_BYTES + 1)
    try:
        _decide(argv[0], xml, environ, pools or chain.PoolTargets())
    except (_RefusedError, chain.ChainError) as error:
        return _refuse(str(error))
    except Exception as error:
        # A defect of ours must not stop every domain of the host.
        if _mentions_mountpoint(xml, environ):
            return _refuse(f"the hook has a defect: {type(error).__name__}: {error}")
    return ALLOW


def _refuse(message: str) -> int:
    shown = "".join(c if c.isprintable() else " " for c in message)
    print(f"ddfs: {shown[:_MAX_MESSAGE]}", file=sys.stderr)
    return REFUSE


def _decide(domain: str, xml: bytes, environ: Mapping[str, str], pools: chain.PoolTargets) -> None:
    """Return when *domain* may start; raises :class:`_RefusedError` otherwise."""
    option = environ.get(ENVIRONMENT) or None
    mountpoint, is_certain = likely_mountpoint(_read_settings(option or DEFAULT_SETTINGS))
    files, sealed = _concerning(xml, mountpoint, pools)
    if is_certain and not files and not sealed:
        return
    from ddfs import config, errors

    try:
        settings = config.load(option)
    except errors.ConfigError as error:
        # Broken settings must not stop the domains that use nothing of ddfs.
        if files:
            raise _RefusedError(f"{error}; {domain} uses ddfs and cannot start before") from None
        return
    if str(settings.mountpoint) != mountpoint:
        files, sealed = _concerning(xml, str(settings.mountpoint), pools)
    if files or sealed:
        _decide_about(domain, files, sealed, settings)


def _concerning(
    xml: bytes, mountpoint: str, pools: chain.PoolTargets
) -> tuple[Sequence[chain.DomainFile], Sequence[chain.SealedFile]]:
    """The domain's files under the mountpoint, and those that may be published templates."""
    mount = chain.Mountpoint(mountpoint)
    everything = chain.domain_files(xml, mount, pools)
    files = [file for file in everything if mount.holds(file.path)]
    return files, chain.sealed_files(everything, mount)


def _decide_about(
    domain: str,
    files: Sequence[chain.DomainFile],
    sealed: Sequence[chain.SealedFile],
    settings: config.Settings,
) -> None:
    for file in files:
        if file.writable:
            raise _RefusedError(_writable(domain, file))
    try:
        allowed, message = _ask(settings, domain, files, sealed)
    except _NoAnswerError as error:
        for found in sealed:
            if found.file.writable and _PUBLISHED_NAME.search(found.file.path):
                raise _RefusedError(_writable(domain, found.file)) from None
        if files:
            _decide_alone(settings, files, str(error))
        return
    if not allowed:
        raise _RefusedError(message)


def _mentions_mountpoint(xml: bytes, environ: Mapping[str, str]) -> bool:
    path = environ.get(ENVIRONMENT) or DEFAULT_SETTINGS
    return os.fsencode(likely_mountpoint(_read_settings(path))[0]) in xml


def _read_settings(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def likely_mountpoint(settings: str) -> tuple[str, bool]:
    """The mountpoint that a settings file's text sets, and whether there is no doubt.

    No doubt: it is one plain line above the first table, as everybody writes it, or the
    word does not occur at all. Otherwise the guess serves where the settings are broken.
    """
    # Keys may be quoted, and strings may have several lines; nobody needs that here.
    is_plain = not re.search(r"'''|\"\"\"|[\"']mountpoint", settings)
    top = re.split(r"^\s*\[", settings, maxsplit=1, flags=re.MULTILINE)[0]
    lines = re.findall(r"^\s*mountpoint\b(.*)$", top, re.MULTILINE)
    if not lines:
        return DEFAULT_MOUNTPOINT, is_plain
    value = re.fullmatch(r"""\s*=\s*(?:"(/[^"\\]*)"|'(/[^']*)')\s*(?:\#.*)?""", lines[0])
    if value is None:
        return DEFAULT_MOUNTPOINT, False
    return os.path.normpath(value[1] or value[2]), is_plain and len(lines) == 1


def _writable(domain: str, file: chain.DomainFile) -> str:
    from shlex import quote

    suffix = os.path.splitext(file.path)[1].removeprefix(".")
    image_format = _QEMU_FORMATS.get(suffix, "raw")
    return (
        f"{file.target} of {domain} is the template {file.path} itself, and could write to it. "
        f"Make an overlay (qemu-img create -f qcow2 -F {image_format} -b {quote(file.path)} "
        "NEW.qcow2) and use that, or make the disk <readonly/>"
    )


def _decide_alone(
    settings: config.Settings, files: Sequence[chain.DomainFile], reason: str
) -> None:
    """Decide while no daemon answers: only what is published already is there.

    Published templates are symlinks in the directory under the mountpoint, which is what
    one sees when nothing is mounted there. What is mounted is not touched: with the daemon
    dead or stuck, a look at it may hang.
    """
    down = f"the daemon does not answer at {settings.socket} ({reason})"
    mountpoint = settings.mountpoint
    if chain.Mountpoint(str(mountpoint)).is_mounted():
        raise _RefusedError(
            f"{down}, and its mount at {mountpoint} is still there: start it (ddfs serve), "
            f"which cleans that up, or run: umount -l {mountpoint}; then try again"
        )
    for file in files:
        found = _published_kind(file.path)
        if found is None and not file.optional:
            raise _RefusedError(
                f"{down}, and {file.path} is not on this host: "
                "start it (ddfs serve), then try again"
            )
        if found and file.kind and file.kind != found:
            raise _RefusedError(wrong_kind(file.path, file.path, found))


def _published_kind(path: str) -> str | None:
    """What *path* is a symlink to: ``file``, or ``block`` for a volume; None: nothing is there."""
    try:
        mode = os.stat(path).st_mode
        if not os.path.islink(path) or not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return None
    except OSError:
        return None
    return "file" if stat.S_ISREG(mode) else "block"


def _ask(
    settings: config.Settings,
    domain: str,
    files: Sequence[chain.DomainFile],
    sealed: Sequence[chain.SealedFile],
) -> tuple[bool, str]:
    """The daemon's answer to ``POST /gate``: whether *domain* may start, and why not.

    Raises :class:`_NoAnswerError` when nobody answers in time.
    """
    import json

    asked = [
        {"path": file.path, "writable": file.writable, "optional": file.optional}
        | ({"kind": file.kind} if file.kind else {})
        | ({"boot": True} if file.role in _BOOT_ROLES else {})
        for file in files
    ]
    asked += [
        {"path": f.file.path, "writable": f.file.writable, "kind": f.file.kind}
        | {"device": f.device, "inode": f.inode}
        for f in sealed
    ]
    question = {"domain": domain, "files": asked}
    deadline = time.monotonic() + settings.gate.wait + GRACE_SECONDS
    status, body = _post(settings.socket, "/gate", json.dumps(question).encode(), deadline)
    try:
        answer = json.loads(body)
        message = str(answer.get("message") or "")
        if status == 200:
            return answer["allowed"] is True, message or f"{domain} may not start"
    except (ValueError, AttributeError, KeyError, RecursionError):
        message = ""
    return False, message or f"the daemon at {settings.socket} gave no usable answer ({status})"


def _post(path: Path, target: str, body: bytes, deadline: float) -> tuple[int, bytes]:
    """One HTTP/1.1 request (RFC 9112) to a Unix socket; status and body of the answer.

    By hand, because importing http.client takes longer than the rest of the hook.
    """
    import socket

    head = (
        f"POST {target} HTTP/1.1\r\nHost: ddfs\r\nContent-Type: application/json\r\n"
        f"Accept: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        try:
            _connect(connection, path, deadline)
            connection.settimeout(_seconds_to(deadline))
            connection.sendall(head.encode() + body)
            return _answer(connection, deadline)
        except OSError as error:
            reason = "timed out" if isinstance(error, TimeoutError) else error.strerror or error
            raise _NoAnswerError(str(reason)) from None


def _connect(connection: socket.socket, path: Path, deadline: float) -> None:
    """Connect, also while more hooks than the listener's queue takes want to."""
    while True:
        connection.settimeout(_seconds_to(deadline))
        try:
            connection.connect(os.fspath(path))
        except BlockingIOError:
            # connect(2) on a Unix socket with a full queue fails at once when it has a
            # timeout, instead of waiting.
            time.sleep(0.05)
        else:
            return


def _seconds_to(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _answer(connection: socket.socket, deadline: float) -> tuple[int, bytes]:
    """The answer on *connection*, which ends with its length or with the connection."""
    data, is_open = b"", True
    while is_open:
        head, complete, body = data.partition(b"\r\n\r\n")
        length = _parse_head(head)[1] if complete else None
        if length is not None and len(body) >= length:
            break
        if len(data) > MAX_ANSWER_BYTES:
            raise _NoAnswerError("its answer is too long")
        connection.settimeout(_seconds_to(deadline))
        received = connection.recv(MAX_ANSWER_BYTES)
        is_open = bool(received)
        data += received
    head, complete, body = data.partition(b"\r\n\r\n")
    if not complete:
        raise _NoAnswerError("it closed the connection without an answer")
    status, length = _parse_head(head)
    if length is not None and len(body) < length:
        raise _NoAnswerError("it closed the connection in the middle of its answer")
    return status, body[:length]


def _parse_head(head: bytes) -> tuple[int, int | None]:
    """Status and Content-Length of an answer's head."""
    first, *lines = head.decode("latin-1").split("\r\n")
    status = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: .*)?", first)
    if status is None:
        raise _NoAnswerError("it does not speak HTTP")
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length" and value.strip().isdecimal():
            return int(status[1]), int(value)
    return int(status[1]), None
