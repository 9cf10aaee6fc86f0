"""Frozen settings from ``ddfs.toml``; every field with its unit and reason.

Read once, in ``daemon.py``, ``cli/`` and ``hook.py``; everything else gets plain
arguments. An unknown key is an error, because a misspelt limit is no limit. Standard
library only, since the hook reads the settings too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ddfs import errors

DEFAULT_PATH: Final = Path("/etc/ddfs/ddfs.toml")

# The variable that names another settings file.
ENVIRONMENT: Final = "DDFS_CONFIG"

# A hook that waits for minutes makes `virsh list` hang for minutes.
MAX_GATE_WAIT_SECONDS: Final = 300.0

# Who wants to keep files for longer pins them.
MAX_GRACE_SECONDS: Final = 7 * 86400.0
# The command line waits for gc ten minutes.
MAX_GC_WAIT_SECONDS: Final = 300.0

# Less than this takes a week for an image, and connections would have to be shut out.
MIN_BANDWIDTH: Final = 64 * 1024
# More than any link has; beyond it a number is a mistake.
MAX_BANDWIDTH: Final = 2**50

# More than file systems hold (ext4 and XFS end at 1 and 8 EiB); beyond it a number is a mistake.
MAX_AMOUNT: Final = 2**63

# Each fetch is a thread and a buffer of a MiB for every mirror that it uses.
MAX_FETCHES_AT_ONCE: Final = 1000
# The threads that receive, over all fetches, are no more.
MAX_CONNECTIONS_PER_HOST: Final = 256
_MAX_SHOWN: Final = 140  # of a value, in an error


@dataclass(frozen=True)
class Amount:
    """An amount of disk: so many bytes, or so much of a file system. One of both is 0."""

    bytes: int = 0
    percent: float = 0.0

    def of(self, total: int) -> int:
        """In bytes, on a file system of *total* bytes."""
        return self.bytes + int(total * self.percent / 100)

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent else str(self.bytes)


@dataclass(frozen=True)
class PrimarySettings:
    """One primary storage: a directory, or the name of a libvirt pool. Exactly one of both."""

    path: Path | None = None
    pool: str | None = None
    # What all files of ddfs in it may take together; None is no limit.
    quota: Amount | None = None
    # What stays free on its file system, whoever else fills it; None is a little.
    keep_free: Amount | None = None
    # Whether other hosts use the same directory.
    shared: bool = False
    # Where templates are fetched to that become volumes of a pool; by default in state_dir.
    staging: Path | None = None
    # Whether a kind of pool may be used that was never run by those who wrote this.
    untested: bool = False


@dataclass(frozen=True)
class GateSettings:
    """How the hook's questions are answered."""

    # Seconds from the first hook that waits until all waiting hooks are answered.
    wait: float = 10.0
    # "refuse", or "start": the daemon starts the domain when its templates are here.
    then: str = "refuse"


@dataclass(frozen=True)
class GcSettings:
    """What is never deleted, whatever is asked for."""

    # Seconds after its last use in which a template's file stays: from a yes of the gate, or the
    # end of a fetch, to the domain or overlay that can be seen.
    grace: float = 60.0
    # Seconds in which the other hosts on a shared storage have to say whether they use a file:
    # to look takes one up to a minute, and NFS shows it the question up to another one late.
    wait: float = 150.0


@dataclass(frozen=True)
class NetworkSettings:
    """Where mirrors may be, and which are near."""

    # ISO 3166-1 alpha-2; mirrors there are tried first.
    location: str | None = None
    # Private address ranges that a remote document may name, in CIDR notation.
    allow_networks: tuple[str, ...] = ()
    # Bytes per second, for all fetches together and for each; 0 is no limit.
    bandwidth: int = 0
    bandwidth_per_fetch: int = 0
    # Connections to one server (a name and a port), over all fetches. Mirrors refuse or ban
    # who takes more; browsers keep to 6 for one page.
    connections_per_host: int = 16
    # OpenPGP keys for templates that name a signature and no keys of their own.
    keyring: str | None = None


@dataclass(frozen=True)
class FetchSettings:
    """How fetches share this host."""

    # So many run, the others wait their turn. Enough for a rack that boots, few enough for
    # each to get somewhere.
    at_once: int = 16


@dataclass(frozen=True)
class LibvirtSettings:
    """Which libvirt."""

    uri: str = "qemu:///system"


@dataclass(frozen=True)
class HostSettings:
    """A host on which `ddfs deploy` may start domains, by the way to its daemon's socket.

    Which libvirt is meant that daemon knows: it deploys on its own.
    """

    # A path on this host, or ssh://[USER@]HOST[:PORT]/PATH.
    socket: str


@dataclass(frozen=True)
class Settings:
    """Everything that an operator can say."""

    # Templates appear in its directory templates/.
    mountpoint: Path = Path("/srv/ddfs")
    # The catalogue, and the heads of images.
    state_dir: Path = Path("/var/lib/ddfs")
    # The control API; 0660.
    socket: Path = Path("/run/ddfs/ddfs.sock")
    # Whoever is in it may use the socket as root does; None: root alone.
    socket_group: str | None = None
    primary: Mapping[str, PrimarySettings] = field(
        default_factory=lambda: {"default": PrimarySettings(Path("/var/lib/libvirt/images"))}
    )
    gate: GateSettings = GateSettings()
    gc: GcSettings = GcSettings()
    network: NetworkSettings = NetworkSettings()
    fetch: FetchSettings = FetchSettings()
    libvirt: LibvirtSettings = LibvirtSettings()
    # By name, in the order in which `ddfs deploy` tries them.
    hosts: Mapping[str, HostSettings] = field(default_factory=dict)

    @property
    def templates_dir(self) -> Path:
        """Where the templates appear."""
        return self.mountpoint / "templates"

    @property
    def reader_socket(self) -> Path:
        """The twin of ``socket`` that answers only what changes nothing."""
        return self.socket.with_name(f"{self.socket.stem}-ro{self.socket.suffix}")


def settings_path(option: str | None) -> Path:
    """The file to read: ``--config``, else ``$DDFS_CONFIG``, else the default."""
    return Path(option or os.environ.get(ENVIRONMENT) or DEFAULT_PATH)


def load(option: str | None = None) -> Settings:
    """The settings. A missing default file means the defaults; a named file must exist."""
    path = settings_path(option)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path == DEFAULT_PATH:
            return Settings()
        raise errors.ConfigError(f"{path}: no such settings file") from None
    except OSError as error:
        raise errors.ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise errors.ConfigError(f"{path}: cannot be read: {error}") from error
    import tomllib  # 3 ms, which a hook and a fetch without a settings file need not wait for

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.ConfigError(f"{path}: not valid TOML: {error}") from error
    try:
        return parse(document)
    except errors.ConfigError as error:
        raise errors.ConfigError(f"{path}: {error}") from error


def parse(document: Mapping[str, Any]) -> Settings:
    """Settings from a TOML document; raises :class:`errors.ConfigError` with the key's name."""
    top = _Table("", document)
    primary = top.table("primary")
    settings = Settings(
        mountpoint=top.path("mountpoint", Settings.mountpoint),
        state_dir=top.path("state_dir", Settings.state_dir),
        socket=top.path("socket", Settings.socket),
        socket_group=top.text("socket_group", None),
        gate=_gate(top.table("gate")),
        gc=_gc(top.table("gc")),
        network=_network(top.table("network")),
        fetch=_fetch(top.table("fetch")),
        libvirt=_libvirt(top.table("libvirt")),
    )
    if primary.keys:
        stores = {name: _primary(primary.table(name)) for name in primary.keys}
        for name in stores:
            if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is None:
                raise errors.ConfigError(f"primary: {name[:80]!r} cannot be a storage's name")
        object.__setattr__(settings, "primary", stores)
    hosts = top.table("host")
    found = {name: _host(hosts.table(name)) for name in hosts.keys}
    object.__setattr__(settings, "hosts", found)
    top.refuse_unknown()
    return settings


def _host(table: _Table) -> HostSettings:
    address = table.text("socket", None)
    table.refuse_unknown()
    if address is None or not address.startswith(("/", "ssh://")):
        raise errors.ConfigError(
            f"{table.name}.socket: a path, or ssh://[USER@]HOST[:PORT]/PATH, not {address!r}"
        )
    return HostSettings(address)


def _primary(table: _Table) -> PrimarySettings:
    path, pool = table.optional_path("path"), table.text("pool", None)
    quota, keep_free = table.amount("quota"), table.amount("keep_free")
    shared, untested = table.flag("shared"), table.flag("untested")
    staging = table.optional_path("staging")
    table.refuse_unknown()
    if (path is None) == (pool is None):
        raise errors.ConfigError(f"{table.name}: give either path or pool")
    if staging is not None and pool is None:
        raise errors.ConfigError(f"{table.name}.staging: only for the volumes of a pool")
    return PrimarySettings(path, pool, quota, keep_free, shared, staging, untested)


def _gate(table: _Table) -> GateSettings:
    wait = table.number("wait", GateSettings.wait, 0.0, MAX_GATE_WAIT_SECONDS)
    then = table.text("then", GateSettings.then)
    table.refuse_unknown()
    if then not in ("refuse", "start"):
        raise errors.ConfigError(f'{table.name}.then: "refuse" or "start", not {then!r}')
    return GateSettings(wait, then)


def _gc(table: _Table) -> GcSettings:
    grace = table.number("grace", GcSettings.grace, 0.0, MAX_GRACE_SECONDS)
    wait = table.number("wait", GcSettings.wait, 1.0, MAX_GC_WAIT_SECONDS)
    table.refuse_unknown()
    return GcSettings(grace, wait)


def _network(table: _Table) -> NetworkSettings:
    location = table.text("location", None)
    networks = table.texts("allow_networks")
    bandwidth = table.bandwidth("bandwidth")
    per_fetch = table.bandwidth("bandwidth_per_fetch")
    connections = table.count(
        "connections_per_host", NetworkSettings.connections_per_host, MAX_CONNECTIONS_PER_HOST
    )
    keyring = table.text("keyring", None)
    if keyring is not None and not keyring.startswith("/"):
        raise errors.ConfigError(f"{table.name}.keyring: an absolute path, not {keyring!r}")
    for network in networks:
        _check_network(f"{table.name}.allow_networks", network)
    table.refuse_unknown()
    if location is not None and not (len(location) == 2 and location.isalpha()):
        raise errors.ConfigError(f"{table.name}.location: two letters, not {location!r}")
    return NetworkSettings(
        location.lower() if location else None,
        networks,
        bandwidth,
        per_fetch,
        connections,
        keyring,
    )


def _fetch(table: _Table) -> FetchSettings:
    at_once = table.count("at_once", FetchSettings.at_once, MAX_FETCHES_AT_ONCE)
    table.refuse_unknown()
    return FetchSettings(at_once)


def _check_network(key: str, text: str) -> None:
    # Imported here, because the hook reads the settings too: it takes 4 ms, and hardly
    # anybody sets this.
    import ipaddress

    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise errors.ConfigError(
            f"{key}: a network in CIDR notation, not {text!r}: {error}"
        ) from None


_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_DECIMAL: Final = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_bandwidth(text: str) -> int:
    """Bytes per second from ``100MiB``, ``1.5 GiB/s``, ``500k`` (KiB, as curl has it), ``10MB``
    (decimal) or a plain number; 0 is no limit. Raises :class:`errors.InvalidValueError`.
    """
    match = re.fullmatch(
        r"(\d{1,18}(?:\.\d{1,9})?)\s?([KMGT]?)(I?B)?(/S)?", text.strip(), re.IGNORECASE | re.ASCII
    )
    if match is None:
        raise errors.InvalidValueError(
            f"{text[:40]!r} is no bandwidth: write bytes per second, for instance 100MiB, "
            "or 0 for no limit"
        )
    prefix, suffix = match[2].upper(), (match[3] or "").upper()
    unit = _DECIMAL[prefix] if prefix and suffix == "B" else _UNITS[prefix]
    return validate_bandwidth(float(match[1]) * unit)


def parse_amount(text: str) -> Amount:
    """From ``200GiB``, ``1.5T`` (binary), ``200GB`` (decimal), a plain number of bytes, or
    ``80%`` of the file system. Raises :class:`errors.InvalidValueError`.
    """
    match = re.fullmatch(
        r"(\d{1,18}(?:\.\d{1,9})?)\s?(?:(%)|([KMGT]?)(I?B)?)",
        text.strip(),
        re.IGNORECASE | re.ASCII,
    )
    if match is None:
        raise errors.InvalidValueError(
            f"{text[:40]!r} is no amount of disk: write it as 200GiB, or as 80% of the file system"
        )
    number = float(match[1])
    if match[2]:
        if number > 100:
            raise errors.InvalidValueError(f"{text[:40]!r} is more than the file system has")
        return Amount(percent=number)
    prefix, suffix = match[3].upper(), (match[4] or "").upper()
    unit = _DECIMAL[prefix] if prefix and suffix == "B" else _UNITS[prefix]
    return validate_amount(number * unit)


def validate_amount(value: float) -> Amount:
    """*value* bytes, if a disk may have so many."""
    if not 0 <= value <= MAX_AMOUNT:
        raise errors.InvalidValueError(f"{_number(value)} bytes cannot be")
    return Amount(int(value))


def validate_bandwidth(value: float) -> int:
    """*value* in whole bytes per second, if fetches can keep to it; 0 is no limit."""
    if value != 0 and not MIN_BANDWIDTH <= value <= MAX_BANDWIDTH:
        raise errors.InvalidValueError(
            f"{_number(value)} bytes per second is no bandwidth to keep to: give 64KiB or more, "
            "or 0 for no limit"
        )
    return int(value)


def _libvirt(table: _Table) -> LibvirtSettings:
    uri = table.text("uri", LibvirtSettings.uri)
    table.refuse_unknown()
    return LibvirtSettings(uri or LibvirtSettings.uri)


def _number(value: float) -> str:
    try:
        return f"{value:.15g}"
    except OverflowError:
        return "so many"


def _shown(value: object) -> str:
    """What somebody wrote, as an error may repeat it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a huge number"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


class _Table:
    """A TOML table that remembers which of its keys somebody asked for."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name = name
        self._values = values
        self._known: set[str] = set()

    @property
    def keys(self) -> list[str]:
        return list(self._values)

    def _full(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def _take(self, key: str, kind: type | tuple[type, ...], wanted: str) -> Any:
        self._known.add(key)
        value = self._values.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise errors.ConfigError(f"{self._full(key)}: {wanted}, not {_shown(value)}")
        return value

    def table(self, key: str) -> _Table:
        value = self._take(key, dict, "a table")
        return _Table(self._full(key), value or {})

    def text(self, key: str, default: str | None) -> str | None:
        value: str | None = self._take(key, str, "a string")
        return default if value is None else value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._take(key, list, "a list of strings") or []
        if not all(isinstance(item, str) for item in value):
            raise errors.ConfigError(f"{self._full(key)}: a list of strings, not {_shown(value)}")
        return tuple(value)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._take(key, (int, float), "a number")
        if value is None:
            return default
        if not low <= value <= high:
            raise errors.ConfigError(f"{self._full(key)}: between {low:g} and {high:g}")
        return float(value)

    def count(self, key: str, default: int, high: int) -> int:
        value = self._take(key, int, "a whole number")
        if value is None:
            return default
        if not 1 <= value <= high:
            raise errors.ConfigError(f"{self._full(key)}: between 1 and {high}")
        return int(value)

    def bandwidth(self, key: str) -> int:
        wanted = 'bytes per second, as a number or like "100MiB"'
        value = self._take(key, (int, float, str), wanted)
        try:
            if isinstance(value, str):
                return parse_bandwidth(value)
            return validate_bandwidth(value or 0)
        except errors.InvalidValueError as error:
            raise errors.ConfigError(f"{self._full(key)}: {error}") from None

    def flag(self, key: str) -> bool:
        self._known.add(key)
        value = self._values.get(key, False)
        if not isinstance(value, bool):
            raise errors.ConfigError(f"{self._full(key)}: true or false, not {_shown(value)}")
        return value

    def amount(self, key: str) -> Amount | None:
        value = self._take(key, (int, float, str), 'an amount of disk, like "200GiB" or "80%"')
        try:
            if isinstance(value, str):
                return parse_amount(value)
            return None if value is None else validate_amount(value)
        except errors.InvalidValueError as error:
            raise errors.ConfigError(f"{self._full(key)}: {error}") from None

    def optional_path(self, key: str) -> Path | None:
        value = self._take(key, str, "a path")
        if value is None:
            return None
        if not value.startswith("/") or "\0" in value:
            raise errors.ConfigError(f"{self._full(key)}: an absolute path, not {_shown(value)}")
        return Path(os.path.normpath(value))

    def path(self, key: str, default: Path) -> Path:
        return self.optional_path(key) or default

    def refuse_unknown(self) -> None:
        unknown = sorted(set(self._values) - self._known)
        if unknown:
            known = ", ".join(sorted(self._known))
            raise errors.ConfigError(f"{self._full(unknown[0])}: unknown key; known are {known}")
