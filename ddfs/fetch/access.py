"""With what each origin is asked: credentials, and who may name which address.

Credentials belong to an origin (scheme, host, port) and are sent to no other. Files with
secrets are read when a registration or a fetch begins, so that they can be changed.
"""

from __future__ import annotations

import logging
import os
import stat
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urljoin

from ddfs import errors
from ddfs.declaration import MAX_HEADERS, Access, Declaration, header_of
from ddfs.fetch.address import Address, AddressError, Header, Origin
from ddfs.model import Digest, HashAlgorithm, KiB, Manifest

log = logging.getLogger(__name__)

# A token has some kilobytes, a netrc file of a whole company some tens of them.
MAX_SECRET_BYTES: Final = 256 * KiB


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """Paths of PEM files; the key may be in the certificate's."""

    certificate: str
    key: str | None = None


@dataclass(frozen=True)
class Grants:
    """What the operator gives to the requests of one registration or fetch.

    ``ca_files`` are trusted beside the host's, whoever is connected to.
    ``hash_is_trusted``: what the bytes are compared with came from the operator or over TLS.
    """

    headers: Mapping[Origin, tuple[Header, ...]] = field(default_factory=dict)
    certificates: Mapping[Origin, ClientCertificate] = field(default_factory=dict)
    ca_files: tuple[str, ...] = ()
    hash_is_trusted: bool = False

    def to(self, address: Address) -> Address:
        """*address* with what its origin is sent."""
        return address.with_headers(self.headers.get(address.origin, ()))


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms an address is asked.

    ``named_from`` is the network (:mod:`ddfs.fetch.networks`) of who named it, None for the
    operator. ``may_leave_tls``: a redirect from https to http is followed, since a strong
    hash that came over a trusted way tells what the bytes have to be. ``heard`` is told the
    network of who answers.
    """

    grants: Grants = field(default_factory=Grants)
    named_from: str | None = None
    may_leave_tls: bool = False
    heard: Callable[[str], None] | None = None


# What the operator typed, with nothing to say about himself.
PLAIN: Final = Terms()


def may_leave_tls(grants: Grants, manifest: Manifest) -> bool:
    """Whether a mirror of *manifest* may redirect from https to http."""
    if manifest.digest is not None:
        strength = manifest.digest.algorithm.strength
    else:
        strength = manifest.pieces.algorithm.strength if manifest.pieces else -1
    return grants.hash_is_trusted and strength >= HashAlgorithm.SHA256.strength


def grants_of(declarations: Sequence[Declaration]) -> Grants:
    """What *declarations*, the names of one content, give together. Blocks: reads files.

    Each is for its own origins; of several for one origin the last counts. One that cannot
    be read is passed over if another one is left; else that raises
    :class:`errors.InvalidValueError`.
    """
    found: list[Grants] = []
    failures: list[errors.InvalidValueError] = []
    for declaration in declarations:
        try:
            found.append(_grants_of(declaration))
        except errors.InvalidValueError as error:
            failures.append(error)
    if failures and not found:
        raise failures[0]
    for failure in failures:
        log.warning("%s", failure)
    return Grants(
        headers={origin: given for one in found for origin, given in one.headers.items()},
        certificates={o: given for one in found for o, given in one.certificates.items()},
        ca_files=tuple(dict.fromkeys(path for one in found for path in one.ca_files)),
        hash_is_trusted=any(one.hash_is_trusted for one in found),
    )


def typed_addresses(declaration: Declaration) -> list[Address]:
    """The http and https addresses that the operator typed, the source's first."""
    found = []
    base = declaration.source
    for text in (base, declaration.checksum_url, declaration.signature):
        if text:
            try:
                url = text if is_remote(text) else urljoin(base, text)
                found.append(Address.parse(url.strip().replace(" ", "%20")))
            except (AddressError, ValueError):
                continue  # a path, or what the reader of sources refuses
    return found


def is_remote(source: str) -> bool:
    """Whether *source* has an origin, and is no file of this host."""
    return source.strip().lower().startswith(("http://", "https://"))


def exposed(path: str) -> str | None:
    """A warning about a file with secrets that everybody on this host may read."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if not stat.S_ISREG(mode) or not mode & stat.S_IROTH:
        return None
    return f"{path}: everybody on this host can read it; chmod o-r {path}"


def secret_files(access: Access) -> list[str]:
    """Those that nobody else should be able to read."""
    # Without a file of its own the key is in the certificate's.
    key = access.client_key or access.client_cert
    files = (access.headers_file, access.netrc_file, access.token_file, key)
    return [path for path in files if path is not None]


def _grants_of(declaration: Declaration) -> Grants:
    access = declaration.access
    is_trusted = _has_trusted_hash(declaration)
    if not access:
        return Grants(hash_is_trusted=is_trusted)
    addresses = typed_addresses(declaration)
    has_origin = bool(addresses) and is_remote(declaration.source)
    headers: dict[Origin, tuple[Header, ...]] = {}
    if not has_origin and (access.headers or access.headers_file or access.token_file):
        raise errors.InvalidValueError(
            "headers and tokens are for a source with an http or https address"
        )
    for path in secret_files(access):
        warning = exposed(path)
        if warning is not None:
            log.warning("%s", warning)
    if access.netrc_file is not None:
        headers.update(_from_netrc(access.netrc_file, addresses))
    if has_origin:
        origin = addresses[0].origin
        headers[origin] = _joined([*headers.get(origin, ()), *_given_headers(access)])
    certificates = {}
    if access.client_cert is not None and has_origin:
        certificates[addresses[0].origin] = ClientCertificate(access.client_cert, access.client_key)
    elif access.client_cert is not None or access.client_key is not None:
        lacking = "client_key: it is of no use without client_cert"
        if access.client_cert is not None:
            lacking = "client_cert: it takes a source with an https address"
        raise errors.InvalidValueError(lacking)
    ca_files = (access.ca_file,) if access.ca_file is not None else ()
    return Grants(headers, certificates, ca_files, is_trusted)


def _given_headers(access: Access) -> list[Header]:
    """What is typed stands last, and counts."""
    found: list[Header] = []
    if access.token_file is not None:
        token = _read_secret("token_file", access.token_file).strip()
        if not token.isascii() or not token.isprintable() or not token or " " in token:
            raise errors.InvalidValueError(
                f"token_file: {access.token_file}: not one token of printable characters"
            )
        found.append(("Authorization", f"Bearer {token}".encode()))
    if access.headers_file is not None:
        found += _from_headers_file(access.headers_file)
    for line in access.headers:
        name, value = header_of(line)
        found.append((name, value.encode()))
    return found


def _from_headers_file(path: str) -> list[Header]:
    found: list[Header] = []
    for number, line in enumerate(_read_secret("headers_file", path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, value = header_of(line)
        except errors.InvalidValueError as error:
            raise errors.InvalidValueError(
                f"headers_file: {path}, line {number}: {error}"
            ) from None
        found.append((name, value.encode()))
    if len(found) > MAX_HEADERS:
        raise errors.InvalidValueError(f"headers_file: {path}: more than {MAX_HEADERS} headers")
    return found


def _from_netrc(path: str, addresses: Iterable[Address]) -> dict[Origin, tuple[Header, ...]]:
    """For each address the machine of its host; ``default`` is for the source's alone."""
    # Sources of the standard library's parser: macdef, quotes, comments.
    import netrc

    _read_secret("netrc_file", path)
    try:
        entries = netrc.netrc(path).hosts
    except netrc.NetrcParseError as error:
        # Its text has the word that it stumbled over, which may be a password.
        raise errors.InvalidValueError(
            f"netrc_file: {path}, line {error.lineno}: not in netrc's form"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable("netrc_file", path, error) from None
    by_host = {name.lower(): entry for name, entry in entries.items() if name != "default"}
    found: dict[Origin, tuple[Header, ...]] = {}
    for position, address in enumerate(addresses):
        entry = by_host.get(address.host) or (entries.get("default") if position == 0 else None)
        if entry is not None and address.origin not in found:
            pair = b64encode(f"{entry[0] or ''}:{entry[2] or ''}".encode())
            found[address.origin] = (("Authorization", b"Basic " + pair),)
    return found


def _joined(headers: Iterable[Header]) -> tuple[Header, ...]:
    """One of each name, the last."""
    return tuple({name.lower(): (name, value) for name, value in headers}.values())


def _read_secret(key: str, path: str) -> str:
    try:
        # O_NONBLOCK: a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise errors.InvalidValueError(f"{key}: {path}: not a regular file")
            data = file.read(MAX_SECRET_BYTES + 1)
        if len(data) > MAX_SECRET_BYTES:
            raise errors.InvalidValueError(f"{key}: {path}: larger than {MAX_SECRET_BYTES} bytes")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _unreadable(key, path, error) from None


def _unreadable(key: str, path: str, error: Exception) -> errors.InvalidValueError:
    reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
    return errors.InvalidValueError(f"{key}: {path}: cannot be read: {reason}")


def _has_trusted_hash(declaration: Declaration) -> bool:
    """Whether a strong hash of *declaration* came from the operator, signed, or over TLS."""
    if _is_strong(declaration.checksum) or declaration.keyring is not None:
        return True
    if declaration.unverified:
        return False
    said_by = declaration.source
    if declaration.checksum_url is not None:
        said_by = urljoin(said_by, declaration.checksum_url)
    return said_by.startswith("https://") or not is_remote(said_by)


def _is_strong(checksum: Digest | None) -> bool:
    return checksum is not None and checksum.algorithm.strength >= HashAlgorithm.SHA256.strength
