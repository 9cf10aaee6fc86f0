"""``ddfs doctor``: is this host set up right, and what to do about it.

Looks and changes nothing, but for what ``--fix`` lets the daemon mend. It never touches a path
inside the mountpoint, and asks ``/proc/self/mountinfo`` about the mountpoint: on a dead mount
even stat() may hang.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import quoteattr

import typer

from ddfs import config, errors
from ddfs.cli import doctor_host, output
from ddfs.cli.session import Session
from ddfs.cli.text import format_size, one_line
from ddfs.control.messages import PoolStatus
from ddfs.fetch import certificates
from ddfs.model import GiB

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

# The smallest of today's cloud images with room for one more.
LOW_ROOM_BYTES: Final = 2 * GiB

# In state_dir: the daemon's copies of pools' definitions (ddfs.storages; a test compares).
KEPT_POOLS: Final = "pools"

# virsh waits for a libvirtd that hangs; doctor does not.
VIRSH_SECONDS: Final = 10.0

# The hook's answer to doctor takes a tenth of a second.
HOOK_SECONDS: Final = 10.0

# Time to get another one from those who know how.
EXPIRES_SOON_DAYS: Final = 30

# The variables that fetches heed.
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")

LIBVIRT_HOOKS: Final = Path("/etc/libvirt/hooks")
FUSE_DEVICE: Final = Path("/dev/fuse")
FUSE_CONF: Final = Path("/etc/fuse.conf")
MOUNTINFO: Final = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``level`` is ok, warn or fail."""

    check: str
    level: str
    text: str


def doctor(session: Session, as_json: bool, fix: bool = False) -> None:
    """Prints the findings; exits with the code of a host's fault if one is a failure."""
    findings = [*examine(session, fix), *host_findings(session), *order_findings(session, fix)]
    if as_json:
        output.print_json(findings)
    else:
        for finding in findings:
            print(f"{finding.level:4}  {finding.check}: {one_line(finding.text)}")
    if any(finding.level == FAIL for finding in findings):
        raise typer.Exit(errors.EXIT_HOST)


def examine(session: Session, fix: bool = False) -> Iterator[Finding]:
    """All findings for this host. Settings that cannot be read are the only one then."""
    try:
        settings = session.settings
    except errors.ConfigError as error:
        yield Finding("settings", FAIL, str(error))
        return
    where = config.settings_path(session.config_option)
    known = str(where) if where.exists() else f"{where} is not there: defaults"
    yield Finding("settings", OK, known)
    yield fuse_device(FUSE_DEVICE)
    yield fuse_conf(FUSE_CONF)
    answering = daemon(session)
    yield mountpoint(settings.mountpoint, MOUNTINFO, is_served=answering.level == OK)
    yield answering
    yield hook(LIBVIRT_HOOKS, settings.templates_dir)
    for name, primary in settings.primary.items():
        if primary.path is None:
            yield primary_pool(name, settings, _virsh, _virsh_for_changes if fix else None)
        else:
            yield primary_storage(name, primary.path)
    there = pool(settings, _virsh)
    is_mended = fix and there.level != OK
    yield defined_pool(there, lambda: session.client.define_pool(None)) if is_mended else there
    yield from authorities(certificates.directory_of(settings.state_dir), time.time())


def host_findings(session: Session) -> Iterator[Finding]:
    """What is outside of ddfs; nothing when the settings cannot be read."""
    try:
        settings = session.settings
    except errors.ConfigError:
        return
    yield from libvirt_sees(settings.mountpoint, LIBVIRT_HOOKS)
    for name, primary in settings.primary.items():
        # That it is not there is said already.
        if primary.path is not None and os.path.isdir(primary.path):
            yield qemu_may_read(f"primary.{name} for QEMU", primary.path)
    yield qemu_may_read("mountpoint for QEMU", settings.mountpoint.parent)
    try:
        known = session.client.templates()
    except errors.DdfsError:
        return
    addresses = [t.source for t in known] + [m.url for t in known for m in t.mirrors]
    yield from mirrors(doctor_host.servers_of(addresses))


def authorities(directory: Path, now: float) -> Iterator[Finding]:
    """Whether the certificates that were added are in force, and for how long yet."""
    try:
        files = certificates.added(directory)
    except errors.StorageError as error:
        yield Finding("certificates", WARN, str(error))
        return
    for file in files:
        check = f"certificate {file.name}"
        if file.problem is not None:
            yield Finding(check, FAIL, f"{file.problem}; ddfs ca remove {file.name}")
        for certificate in file.certificates:
            left = certificate.days_left(now)
            if left < 0:
                text = f"{certificate.subject} has expired; ddfs ca remove {file.name}"
                yield Finding(check, FAIL, text)
            elif left < EXPIRES_SOON_DAYS:
                yield Finding(check, WARN, f"{certificate.subject} expires in {left} days")
            else:
                yield Finding(check, OK, f"{certificate.subject}, {left} days left")


def libvirt_sees(mountpoint: Path, hooks: Path) -> Iterator[Finding]:
    """Whether libvirt's daemons have the mount in their namespace, and know the hook.

    Nothing where it is not even mounted for us: that has been said.
    """
    if not mounted_kinds(mountpoint, Path("/proc/self/mountinfo").read_bytes()):
        return
    installed = installed_hook(hooks)
    for pid in doctor_host.libvirt_daemons():
        check = f"libvirt process {pid}"
        try:
            kinds = mounted_kinds(mountpoint, Path(f"/proc/{pid}/mountinfo").read_bytes())
        except OSError as error:
            yield Finding(check, WARN, f"cannot be looked at: {error.strerror}")
            continue
        if not kinds or not kinds[-1].startswith("fuse"):
            text = (
                f"it does not see the mount on {mountpoint}: take PrivateMounts, ProtectSystem "
                "and the like out of ddfs's service, then restart both"
            )
            yield Finding(check, FAIL, text)
        elif installed is not None and _is_newer(installed, doctor_host.started_at(pid)):
            text = (
                f"it was started before {installed} was installed: if it was not reloaded since, "
                "systemctl reload libvirtd"
            )
            yield Finding(check, WARN, text)
        else:
            yield Finding(check, OK, f"it sees the mount on {mountpoint}")


def _is_newer(path: Path, moment: float | None) -> bool:
    try:
        return moment is not None and path.stat().st_ctime > moment
    except OSError:
        return False


def qemu_may_read(check: str, path: Path) -> Finding:
    """Whether QEMU's user may enter all directories down to *path*."""
    user = doctor_host.qemu_user(doctor_host.QEMU_CONF)
    if user is None:
        return Finding(check, WARN, "nobody knows which user runs QEMU: set user in qemu.conf")
    closed = doctor_host.closed_directory(path, user)
    if closed is not None:
        text = f"{user.pw_name} may not enter {closed}: chmod o+x {closed}"
        return Finding(check, FAIL, text)
    return Finding(check, OK, f"{user.pw_name} may enter {path}")


def mirrors(servers: Sequence[str]) -> Iterator[Finding]:
    """Whether the servers of sources and mirrors answer, and our clock is right by theirs."""
    if not servers:
        return
    if any(value and name.lower() in _PROXIES for name, value in os.environ.items()):
        yield Finding("mirrors", OK, "behind a proxy: not tried")
        return
    offsets = []
    for server, problem, offset in doctor_host.ask_servers(servers):
        if problem is not None:
            yield Finding(f"mirror {server}", WARN, f"cannot be reached: {problem}")
        else:
            yield Finding(f"mirror {server}", OK, "it answers")
        offsets += [] if offset is None else [offset]
    if offsets:
        # One server's clock may be wrong; not those of most.
        middle = sorted(offsets)[len(offsets) // 2]
        if abs(middle) > doctor_host.MAX_CLOCK_SECONDS:
            text = (
                f"it is {abs(middle):.0f} s {'slow' if middle > 0 else 'fast'}: run an NTP client"
            )
            yield Finding("clock", WARN, text)
        else:
            yield Finding("clock", OK, "it agrees with the mirrors'")


def order_findings(session: Session, fix: bool) -> Iterator[Finding]:
    """Whether disk and catalogue agree; a daemon that is down is a finding of its own."""
    try:
        differences = session.client.take_stock(fix)
    except errors.ConfigError:
        return
    except errors.DaemonDownError:
        return
    for difference in differences:
        text = f"{difference.problem}: {difference.remedy}"
        level = OK if difference.mended else WARN
        yield Finding(f"order {difference.subject}", level, text)
    if not differences:
        yield Finding("order", OK, "disk and catalogue agree")


def fuse_device(device: Path) -> Finding:
    """Whether the kernel has FUSE for us."""
    if os.access(device, os.R_OK | os.W_OK):
        return Finding("fuse", OK, f"{device} can be used")
    if device.exists():
        return Finding("fuse", FAIL, f"{device} may not be used by this user: run it as root")
    return Finding("fuse", FAIL, f"{device} is not there: load the module with: modprobe fuse")


def fuse_conf(conf: Path) -> Finding:
    """Whether a daemon that is not root could let QEMU, another user, into the mount."""
    try:
        lines = [line.strip() for line in conf.read_text().splitlines()]
    except OSError:
        lines = []
    if "user_allow_other" in lines or os.geteuid() == 0:
        return Finding("fuse.conf", OK, "other users may use the mount")
    return Finding(
        "fuse.conf", WARN, f"for a daemon that is not root: write user_allow_other in {conf}"
    )


def mountpoint(path: Path, mountinfo: Path, *, is_served: bool) -> Finding:
    """Whether the template pool is mounted, as the kernel says, and somebody serves it."""
    kinds = mounted_kinds(path, mountinfo.read_bytes())
    if not kinds:
        return Finding(
            "mountpoint", FAIL, f"nothing is mounted on {path}: start it with: ddfs serve"
        )
    if not kinds[-1].startswith("fuse"):
        text = f"{path} has a file system of type {kinds[-1]}: set another `mountpoint`"
        return Finding("mountpoint", FAIL, text)
    if not is_served:
        text = f"{path} is the mount of a daemon that is gone: `ddfs serve` clears it up"
        return Finding("mountpoint", FAIL, text)
    return Finding("mountpoint", OK, f"{path} is mounted ({kinds[-1]})")


def mounted_kinds(path: Path, mountinfo: bytes) -> list[str]:
    """The types of the file systems mounted exactly on *path*, the uppermost last.

    *mountinfo* is as in proc_pid_mountinfo(5): the fifth field is the mount point, with
    blanks and backslashes in octal, and the type follows the field ``-``.
    """
    kinds = []
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        where = fields[4].decode("unicode_escape").encode("latin-1")
        if where == os.fsencode(path):
            kinds.append(fields[fields.index(b"-", 6) + 1].decode())
    return kinds


def daemon(session: Session) -> Finding:
    """Whether the daemon answers."""
    try:
        status = session.client.daemon_status()
    except errors.DdfsError as error:
        return Finding("daemon", FAIL, str(error))
    return Finding("daemon", OK, f"version {status.version}, process {status.pid}, answers")


def hook(hooks: Path, templates_dir: Path) -> Finding:
    """Whether libvirt asks us before it starts a domain that uses *templates_dir*."""
    found = installed_hook(hooks)
    if found is None:
        text = (
            "libvirt does not ask ddfs before it starts a domain: install hooks/qemu as its first "
            f"lines say, as {hooks}/qemu or {hooks}/qemu.d/ddfs, then systemctl reload libvirtd"
        )
        return Finding("hook", FAIL, text)
    if not os.access(found, os.X_OK):
        return Finding("hook", FAIL, f"{found} is not executable: chmod 755 {found}")
    # A hook of somebody else's that calls ours may do other things, too: it is not run.
    is_ours = b"\nddfs_home=" in found.read_bytes()
    wrong = _what_is_wrong(found, templates_dir) if is_ours else None
    if wrong is not None:
        return Finding("hook", FAIL, wrong)
    return Finding("hook", OK, f"{found} is installed; libvirtd reads it since its start")


def installed_hook(hooks: Path) -> Path | None:
    """The first of libvirt's hooks that is ours or calls ours."""
    candidates = [hooks / "qemu"]
    # libvirt runs what is in qemu.d since 6.5.
    if (hooks / "qemu.d").is_dir():
        candidates += sorted((hooks / "qemu.d").iterdir())
    for candidate in candidates:
        with contextlib.suppress(OSError):
            if b"ddfs" in candidate.read_bytes():
                return candidate
    return None


def _what_is_wrong(script: Path, templates_dir: Path) -> str | None:
    """Runs the hook as libvirt does, for a domain that would write to a template.

    A hook that works refuses that by the path alone: it asks nobody, and needs no daemon.
    """
    path = templates_dir / "ddfs-doctor.img"
    xml = (
        f"<domain><name>ddfs-doctor</name><devices><disk type='file' device='disk'>"
        f"<source file={quoteattr(str(path))}/><target dev='vda'/></disk></devices></domain>"
    )
    # libvirt passes hardly more on (virCommandAddEnvPassCommon).
    environ = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath), "HOME": "/root"}
    command = [os.fspath(script), "ddfs-doctor", "prepare", "begin", "-"]
    try:
        done = subprocess.run(
            command,
            input=xml,
            env=environ,
            capture_output=True,
            text=True,
            timeout=HOOK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{script} cannot be run: {error}"
    if done.returncode == 0:
        return (
            f"{script} lets domains that use {templates_dir} start unasked: "
            "look at ddfs_home and ddfs_config in it"
        )
    if str(path) not in done.stderr:
        return f"{script} does not work: {done.stderr.strip()}"
    return None


def primary_pool(
    name: str,
    settings: config.Settings,
    virsh: Callable[[str, list[str]], str | None],
    change: Callable[[str, list[str]], str | None] | None = None,
) -> Finding:
    """Whether the libvirt pool that templates are stored in is active. With *change*, which is
    *virsh* that may change something, it is defined again where the daemon has kept its
    definition; never built, since that deletes what is there.
    """
    check, wanted = f"primary.{name}", settings.primary[name].pool or ""
    listed = virsh(settings.libvirt.uri, ["pool-list", "--name"])
    if listed is None:
        return Finding(check, WARN, f"libvirt cannot be asked about its pool {wanted}")
    if wanted not in map(str.strip, listed.splitlines()):
        defined = virsh(settings.libvirt.uri, ["pool-list", "--all", "--name"])
        if defined is not None and wanted not in map(str.strip, defined.splitlines()):
            return _undefined_pool(check, wanted, settings, change)
        text = f"libvirt's pool {wanted} is not active: virsh pool-start {shlex.quote(wanted)}"
        return Finding(check, FAIL, text)
    return Finding(check, OK, f"libvirt's pool {wanted} is active")


def _undefined_pool(
    check: str,
    wanted: str,
    settings: config.Settings,
    change: Callable[[str, list[str]], str | None] | None,
) -> Finding:
    """What is to be done; with *change*, what came of doing it."""
    kept = settings.state_dir / KEPT_POOLS / f"{wanted}.xml"
    is_kept = os.path.exists(kept)  # as far as we may look: it is root's
    file = str(kept) if is_kept else "FILE"
    commands = ["pool-define", file], ["pool-start", wanted]
    if change is not None and is_kept:
        done = (change(settings.libvirt.uri, command) is not None for command in commands)
        if all(done):
            return Finding(check, OK, f"libvirt had no pool {wanted} any more, and has it again")
    told = " && ".join(shlex.join(["virsh", *command]) for command in commands)
    where = "" if is_kept else f"; FILE: a backup of /etc/libvirt/storage/{wanted}.xml"
    text = f"libvirt has no pool {wanted} any more: {told}{where} (never pool-build: it deletes)"
    return Finding(check, FAIL, text)


def primary_storage(name: str, path: Path) -> Finding:
    """Whether templates can be stored."""
    check = f"primary.{name}"
    if not os.path.isdir(path):
        return Finding(check, FAIL, f"{path} is not a directory: make it, or set another path")
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding(check, FAIL, f"{path} cannot be written to by this user")
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize
    level = WARN if free < LOW_ROOM_BYTES else OK
    advice = ": make room" if level == WARN else ""
    return Finding(check, level, f"{path} has {format_size(free)} free{advice}")


def pool(settings: config.Settings, virsh: Callable[[str, list[str]], str | None]) -> Finding:
    """Whether libvirt has an active pool on the mount."""
    names = virsh(settings.libvirt.uri, ["pool-list", "--name"])
    if names is None:
        text = "libvirt cannot be asked: is libvirtd running, and virsh installed?"
        return Finding("pool", WARN, text)
    target = f"<path>{settings.templates_dir}</path>"
    for name in filter(None, map(str.strip, names.splitlines())):
        if target in (virsh(settings.libvirt.uri, ["pool-dumpxml", name]) or ""):
            return Finding("pool", OK, f"{name} is active on {settings.templates_dir}")
    text = f"no active pool on {settings.templates_dir}: define it with: ddfs pool define"
    return Finding("pool", WARN, text)


def defined_pool(finding: Finding, define: Callable[[], PoolStatus]) -> Finding:
    """What is to be said once the daemon was asked to define and start the missing pool."""
    try:
        made = define()
    except errors.DdfsError as error:
        return Finding(finding.check, finding.level, f"{finding.text}; tried that: {error}")
    return Finding(finding.check, OK, f"{made.name} was not active on {made.path}, and is now")


def _virsh_for_changes(uri: str, arguments: list[str]) -> str | None:
    return _virsh(uri, arguments, access=())


def _virsh(
    uri: str, arguments: list[str], *, access: tuple[str, ...] = ("--readonly",)
) -> str | None:
    """What virsh prints; None if it is not there, fails or takes too long."""
    program = shutil.which("virsh")
    if program is None:
        return None
    command = [program, *access, "--connect", uri, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=VIRSH_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
