"""What an operator declares about a template: its source, and how to reach and check it.

One value with one plain form, which a declaration file, the control API and the catalogue
share: a key that is right in one is right in all. The catalogue keeps it, so that the source
can be asked again. Standard library and our own values only; nothing here does I/O.
"""

from __future__ import annotations

import dataclasses
import os
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

from ddfs import errors
from ddfs.model import MAX_SIZE, Digest, ImageFormat

# The fields that may carry a secret: never printed, logged or listed.
SECRET_KEYS: Final = frozenset({"headers"})

# RFC 9110 section 5.6.2: what a field name is made of. A value may not break its line.
_HEADER: Final = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}):([^\x00-\x08\x0a-\x1f\x7f]{0,8192})"
)

# What each request says by itself, or what is for the connection alone (RFC 9110 sections 7.2,
# 7.6, 13.1 and 14, RFC 9112 section 6): another value would make the answer another one.
_ENGINE_HEADERS: Final = frozenset(
    {
        *("host", "range", "if-range", "if-match", "if-none-match"),
        *("if-modified-since", "if-unmodified-since", "accept-encoding", "content-length"),
        *("transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect"),
        *("proxy-authorization", "proxy-connection"),
    }
)

# scheme://user:password@ at the start of an address; the last "@" before the path counts.
_LOGIN: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)@")

# How much of a value an error repeats.
_MAX_SHOWN: Final = 140

# More than any login takes.
MAX_HEADERS: Final = 32

_DURATION_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

# More often than this is an attack on the publisher, and less often than a year is never.
MIN_CHECK_EVERY_SECONDS: Final = 60
MAX_CHECK_EVERY_SECONDS: Final = 366 * 86400


@dataclass(frozen=True, slots=True)
class Access:
    """With what the origin (scheme, host and port) of a source is asked, and no other.

    ``headers`` are lines ``Name: value``; ``headers_file`` has such lines and is read when
    needed, so that a secret can change. ``netrc_file`` is in netrc's form, ``token_file``
    has a bearer token. ``client_cert`` and ``client_key`` are PEM files (the key may be in
    the former), ``ca_file`` a PEM bundle that is trusted beside the host's, for the mirrors
    too. A login in the source (``https://user:password@host/``) becomes one of the headers.
    All paths are absolute.
    """

    headers: tuple[str, ...] = ()
    headers_file: str | None = None
    netrc_file: str | None = None
    token_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    ca_file: str | None = None

    def __bool__(self) -> bool:
        return self != Access()


@dataclass(frozen=True, slots=True)
class Declaration:
    """Everything that an operator says about a template but its name.

    ``source`` is an address or a path; ``format`` None: as the bytes say. ``checksum`` is of
    what is downloaded, ``unpacked_checksum`` of what comes out of it. ``checksum_url`` names a
    checksum file, ``signature`` a detached signature of that file (or of the metalink, or of
    the image where there is neither) and ``keyring`` the keys that may have made it. ``file``
    chooses one of a metalink's, a checksum file's or an archive's files. ``size`` is the size
    in bytes after unpacking.
    ``no_keyring``: the host's keys (``network.keyring``) are not asked; what signs this template is
    not looked at, and its hashes count.
    ``unverified`` allows a source with nothing to check it by. ``check_every`` is in seconds.
    ``primary`` names the primary storage that it goes to.
    """

    source: str
    format: ImageFormat | None = None
    checksum: Digest | None = None
    checksum_url: str | None = None
    unpacked_checksum: Digest | None = None
    signature: str | None = None
    keyring: str | None = None
    no_keyring: bool = False
    file: str | None = None
    size: int | None = None
    unverified: bool = False
    check_every: int | None = None
    primary: str | None = None
    access: Access = Access()

    def __post_init__(self) -> None:
        self._move_login()
        if self.size is not None and not 0 < self.size <= MAX_SIZE:
            raise errors.InvalidValueError(f"size: {self.size} bytes cannot be")
        if self.unverified and (self.checksum or self.checksum_url):
            raise errors.InvalidValueError("unverified: there is a checksum to verify it by")
        if self.no_keyring and (self.keyring or self.signature):
            what = "keyring" if self.keyring else "signature"
            raise errors.InvalidValueError(f"no_keyring: there is a {what} to check it by")

    def keys(self, of_host: str | None) -> str | None:
        """The keys that count for it: its own, else those *of_host*, unless it wants none."""
        return None if self.no_keyring else self.keyring or of_host

    def _move_login(self) -> None:
        """A login in the source becomes a header: sources are shown, headers are not."""
        source, header = _without_login(self.source)
        if header is None:
            return
        if any(header_of(line)[0].lower() == "authorization" for line in self.access.headers):
            raise errors.InvalidValueError("headers: Authorization, and a login in the source")
        access = dataclasses.replace(self.access, headers=(*self.access.headers, header))
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "access", access)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """From the plain form: a mapping of keys to strings, whole numbers, booleans and lists
        of strings; None is as good as left out. Raises :class:`errors.InvalidValueError` that
        starts with the key's name; see :func:`problems_of` for all that is wrong at once.
        """
        for problem in problems_of(plain):
            raise errors.InvalidValueError(problem)
        return cls._made(plain)

    @classmethod
    def _made(cls, plain: Mapping[str, Any]) -> Self:
        values = {key: _READERS[key](value) for key, value in plain.items() if value is not None}
        access = {key: values.pop(key) for key in _ACCESS_KEYS if key in values}
        return cls(**values, access=Access(**access))

    def as_plain(self) -> dict[str, Any]:
        """The plain form, secrets included, without what is left at its default."""
        plain: dict[str, Any] = {}
        for owner in (self, self.access):
            for field in dataclasses.fields(owner):
                value = getattr(owner, field.name)
                if field.name != "access" and value != field.default:
                    plain[field.name] = _plain(value)
        return plain


def problems_of(plain: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a plain form, a line each; each starts with its key."""
    problems = []
    if not plain.get("source"):
        problems.append("source: an address or a path is needed")
    for key, value in plain.items():
        if key not in _READERS:
            problems.append(f"{key}: unknown key; known are {', '.join(sorted(_READERS))}")
        elif value is not None:
            try:
                _READERS[key](value)
            except errors.InvalidValueError as error:
                text = str(error)
                problems.append(text if text.startswith(f"{key}: ") else f"{key}: {text}")
    if not problems:
        try:
            Declaration._made(plain)
        except errors.InvalidValueError as error:
            problems.append(str(error))
    return problems


def parse_duration(text: str) -> int:
    """Seconds from ``90s``, ``15m``, ``12h``, ``1d`` or ``2w``."""
    match = re.fullmatch(r"([0-9]{1,9})\s?([smhdw])", text.strip().lower())
    if match is None:
        raise errors.InvalidValueError(
            f"{text[:40]!r} is no length of time: write a number and s, m, h, d or w, as in 1d"
        )
    return int(match[1]) * _DURATION_UNITS[match[2]]


def format_duration(seconds: int) -> str:
    """*seconds* as :func:`parse_duration` reads it, in the largest unit that fits."""
    unit, length = next((u, s) for u, s in reversed(_DURATION_UNITS.items()) if seconds % s == 0)
    return f"{seconds // length}{unit}"


def _shown(value: Any) -> str:
    """What somebody wrote, as an error may repeat it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a huge number"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise errors.InvalidValueError(f"a text that is not empty, not {_shown(value)}")
    return value


def _path(value: Any) -> str:
    path = _text(value)
    if not path.startswith("/"):
        raise errors.InvalidValueError(f"an absolute path, not {_shown(path)}")
    return os.path.normpath(path)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_SIZE:
        raise errors.InvalidValueError(f"a whole number of bytes, not {_shown(value)}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise errors.InvalidValueError(f"true or false, not {_shown(value)}")
    return value


def _check_every(value: Any) -> int:
    seconds = value if isinstance(value, int) and not isinstance(value, bool) else None
    if seconds is None:
        seconds = parse_duration(_text(value))
    if not MIN_CHECK_EVERY_SECONDS <= seconds <= MAX_CHECK_EVERY_SECONDS:
        raise errors.InvalidValueError(f"between 1m and 366d, not {_shown(value)}")
    return seconds


def header_of(line: str) -> tuple[str, str]:
    """Name and value of a line ``Name: value``; :class:`errors.InvalidValueError`.

    No error says the value: it may be a secret.
    """
    match = _HEADER.fullmatch(line)
    if match is None:
        raise errors.InvalidValueError("not one line 'Name: value' without control characters")
    if match[1].lower() in _ENGINE_HEADERS:
        raise errors.InvalidValueError(
            f"{match[1]} is set by ddfs itself, for each request as it needs it; leave it out"
        )
    return match[1], match[2].strip()


def _headers(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_HEADERS:
        raise errors.InvalidValueError(f"a list of at most {MAX_HEADERS} lines 'Name: value'")
    for number, line in enumerate(value, 1):
        if not isinstance(line, str):
            raise errors.InvalidValueError(f"number {number} is no text")
        try:
            header_of(line)
        except errors.InvalidValueError as error:
            raise errors.InvalidValueError(f"number {number}: {error}") from None
    return tuple(value)


def _without_login(address: str) -> tuple[str, str | None]:
    """*address* without user name and password, and the header that says them."""
    match = _LOGIN.match(address)
    if match is None:
        return address, None
    if match[1].lower() not in ("http", "https"):
        raise errors.InvalidValueError("source: a login in the address is for http and https")
    user, _, password = match[2].partition(":")
    pair = f"{unquote(user)}:{unquote(password)}".encode()
    header = f"Authorization: Basic {b64encode(pair).decode('ascii')}"
    return f"{match[1]}://{address[match.end() :]}", header


def _source(value: Any) -> str:
    text = _text(value)
    try:
        urlsplit(text)
    except ValueError as error:
        # It repeats what it does not understand, which may be a login.
        reason = str(error).partition("'")[0].strip()
        raise errors.InvalidValueError(f"a malformed address: {reason}") from None
    return text


def _address(value: Any) -> str:
    address = _source(value)
    if _LOGIN.match(address):
        raise errors.InvalidValueError("with a login in it; put that into a netrc_file")
    return address


def _plain(value: Any) -> Any:
    if isinstance(value, Digest):
        return str(value)
    if isinstance(value, ImageFormat):
        return value.value
    return list(value) if isinstance(value, tuple) else value


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "source": _source,
    "format": lambda value: ImageFormat.parse(_text(value)),
    "checksum": lambda value: Digest.parse(_text(value)),
    "checksum_url": _address,
    "unpacked_checksum": lambda value: Digest.parse(_text(value)),
    "signature": _address,
    "keyring": _path,
    "no_keyring": _flag,
    "file": _text,
    "size": _whole,
    "unverified": _flag,
    "check_every": _check_every,
    "primary": _text,
    "headers": _headers,
    "headers_file": _path,
    "netrc_file": _path,
    "token_file": _path,
    "client_cert": _path,
    "client_key": _path,
    "ca_file": _path,
}
# All keys of the plain form, and those that are paths.
PLAIN_KEYS: Final = tuple(_READERS)
PATH_KEYS: Final = frozenset(key for key, reader in _READERS.items() if reader is _path)

_ACCESS_KEYS: Final = tuple(field.name for field in dataclasses.fields(Access))
