"""What crosses the control socket, as frozen dataclasses.

The API's document (``GET /openapi.json``) is made from these classes, and the client
decodes into them. Sizes are in bytes, lengths of time in seconds, points in time in POSIX
seconds. Only the standard library is imported: ``ddfs status`` has to start fast.

New fields get a default, so that a client and a daemon of neighbouring versions still
understand each other; a field never changes its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# For the requests that people write by hand: a misspelt key is an error, and not an option
# that silently does nothing. Pydantic, under FastAPI, looks for it under this name. The
# gate's question goes without: an older daemon must not refuse a newer hook.
_STRICT: Final = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """One mirror of a running or ended fetch.

    ``state`` is the engine's word: ``untried``, ``idle``, ``busy``, ``resting`` or ``out``;
    ``rejected_pieces`` counts pieces whose hash was wrong.
    """

    url: str
    bytes_received: int
    bytes_per_second: float
    state: str
    last_error: str | None = None
    rejected_pieces: int = 0


@dataclass(frozen=True, slots=True)
class TemplateStatus:
    """A template, and how far its content has come on this host.

    ``format`` is the suffix of its name in the pool, ``file_name`` that name, ``path`` the
    whole path in the mount. ``state`` is the value of a :class:`ddfs.model.SpoolState`:
    ``not-downloaded``, ``downloading``, ``downloaded`` or ``error``. ``bytes_here`` counts
    verified (without piece hashes: received) bytes. ``published_path`` is there exactly in
    the state ``downloaded``. After a failure ``last_error`` says why (``last_error_kind`` is
    its kind, if the daemon has not been restarted since), and ``retry_in`` in how many
    seconds the next demand may start a fetch again (None: at once). ``head_is_verified`` and
    ``is_readable_early`` are explained in :mod:`ddfs.model`; the latter is called
    ``readable_early`` here. ``family`` is the name without a version and ``version`` its
    number, from 1; asked for without one, the newest answers. ``FAMILY@VERSION`` always means
    this one. ``source_verdict`` is how the last check of the source ended, at
    ``checked_at``: ``unchanged``, ``changed`` or ``cannot be asked`` (None: not checked
    yet), with ``source_message`` for people; ``check_every`` is in seconds. ``unverified``:
    nothing but its first fetch says what its bytes are.
    """

    name: str
    format: str
    file_name: str
    path: str
    size: int
    virtual_size: int | None
    source: str
    content_id: str
    state: str
    bytes_here: int
    bytes_per_second: float
    seconds_left: float | None
    published_path: str | None
    last_error: str | None
    retry_in: float | None
    added_at: float
    head_is_verified: bool
    readable_early: bool
    mirrors: tuple[MirrorStatus, ...] = ()
    last_error_kind: str | None = None
    family: str = ""
    version: int = 1
    is_newest: bool = True
    # Never deleted to make room; when it was last used, None for never.
    pinned: bool = False
    last_used_at: float | None = None
    source_verdict: str | None = None
    source_message: str = ""
    checked_at: float | None = None
    check_every: int | None = None
    unverified: bool = False
    # What is fetched, where that is packed; without a known size, ``size`` is that one.
    packed_size: int | None = None
    size_is_known: bool = True
    # The primary storages on which it is published, the one of published_path first.
    primaries: tuple[str, ...] = ()
    # A signature of the image has to hold before it is published; with which kind of hash it
    # is verified, where that can be forged.
    signed: bool = False
    weak: str | None = None
    # The other host that fetches it onto a storage that they share; this one waits for that.
    waits_for: str | None = None

    @property
    def exact_name(self) -> str:
        """What means this version, also when there will be a newer one."""
        return f"{self.family or self.name}@{self.version}"

    @property
    def typed_name(self) -> str:
        """What people type for it: a plain name means the newest version."""
        return self.name if self.is_newest else self.exact_name


@dataclass(frozen=True, slots=True)
class AddTemplate:
    """The body of ``POST /v1/templates``.

    Beside the name it is the plain form of a :class:`ddfs.declaration.Declaration`, which
    says what each key means; None is as good as left out.
    """

    __pydantic_config__ = _STRICT

    name: str
    source: str
    format: str | None = None
    checksum: str | None = None
    file: str | None = None
    checksum_url: str | None = None
    unpacked_checksum: str | None = None
    signature: str | None = None
    keyring: str | None = None
    size: int | None = None
    no_keyring: bool = False
    unverified: bool = False
    check_every: int | None = None
    headers: tuple[str, ...] = ()
    headers_file: str | None = None
    netrc_file: str | None = None
    token_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    ca_file: str | None = None
    primary: str | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """The body of ``POST /v1/cancel``: names of templates."""

    __pydantic_config__ = _STRICT

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prefetch:
    """The body of ``POST /v1/prefetch``: names of templates.

    ``seeds`` are absolute paths of files on the daemon's host that may have parts of them.
    """

    __pydantic_config__ = _STRICT

    names: tuple[str, ...]
    seeds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What fetches may take. Bandwidths in bytes per second, 0 for no limit.

    ``connections_per_host`` counts those to one server over all fetches; of more fetches
    than ``fetches_at_once`` the others wait their turn.
    """

    bandwidth: int
    bandwidth_per_fetch: int
    connections_per_host: int
    fetches_at_once: int


@dataclass(frozen=True, slots=True)
class ChangeLimits:
    """The body of ``PUT /v1/limits``, with the meaning of :class:`Limits`.

    What is None or left out stays as it is. A change lasts until the daemon ends.
    """

    __pydantic_config__ = _STRICT

    bandwidth: int | None = None
    bandwidth_per_fetch: int | None = None
    connections_per_host: int | None = None
    fetches_at_once: int | None = None


@dataclass(frozen=True, slots=True)
class GateFile:
    """One file under the mount that a domain needs.

    ``optional``: the domain starts without it where it is missing (startupPolicy). A file
    elsewhere that the domain would write to, and that may be a published template, comes
    with ``device`` and ``inode`` as stat(2) has them. ``boot``: it is a kernel, an initrd or a
    device tree. ``kind``: the disk says that it is a ``file``, or a ``block`` device; empty where
    nobody says so.
    """

    path: str
    writable: bool = False
    optional: bool = False
    device: int = 0
    inode: int = 0
    boot: bool = False
    kind: str = ""


@dataclass(frozen=True, slots=True)
class GateQuestion:
    """The body of ``POST /gate``: may *domain* start, which needs *files*?"""

    domain: str
    files: tuple[GateFile, ...]


@dataclass(frozen=True, slots=True)
class GateAnswer:
    """``message`` is one line for the person who starts the domain; empty if allowed."""

    allowed: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class DefinePool:
    """The body of ``POST /v1/pool``. Without a name the daemon chooses one."""

    __pydantic_config__ = _STRICT

    name: str | None = None


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The libvirt pool on the mount. ``volumes`` is None while the pool is not active.

    After ``undefine`` it is the pool that was: not active, its ``path`` still named.
    """

    name: str
    path: str
    active: bool
    volumes: int | None = None


@dataclass(frozen=True, slots=True)
class PrimaryStatus:
    """A primary storage and its room.

    ``bytes_held`` is what ddfs takes there or has promised to fetches; ``quota`` is None
    where there is none.
    """

    name: str
    path: str
    bytes_total: int
    bytes_free: int
    bytes_held: int = 0
    quota: int | None = None
    keep_free: int = 0


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The daemon. ``fetching``, ``published``, ``failed`` and ``total`` count templates.

    ``uptime`` is in seconds, ``bytes_per_second`` the sum over all fetches.
    """

    version: str
    pid: int
    uptime: float
    mountpoint: str
    templates_dir: str
    fetching: int
    published: int
    total: int
    failed: int = 0
    bytes_per_second: float = 0.0
    primary: tuple[PrimaryStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """The body of every answer that is an error.

    ``kind`` is :meth:`ddfs.errors.DdfsError.kind` of what was raised, ``message`` its whole
    text. ``internal`` is the kind of what nobody foresaw (status 500).
    """

    kind: str
    message: str
