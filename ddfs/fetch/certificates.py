"""CA certificates that an operator adds: what is in a file, and the directory of this host.

The directory is ``ca`` in ``state_dir``, one PEM file for each name. It is looked at for each
new connection, so that what is added or removed counts at once and for every process.
"""

from __future__ import annotations

import os
import re
import ssl
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddfs import errors
from ddfs.model import MiB

# The bundle of all public authorities has 0.2 MiB.
MAX_BUNDLE_BYTES: Final = 4 * MiB

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_SUFFIX: Final = ".pem"


@dataclass(frozen=True, slots=True)
class Certificate:
    """One CA certificate; ``expires_at`` in POSIX seconds."""

    subject: str
    expires_at: float

    def days_left(self, now: float) -> int:
        """Whole days until it expires; negative afterwards."""
        return int((self.expires_at - now) // 86400)


@dataclass(frozen=True, slots=True)
class AddedFile:
    """A file of the directory. ``problem`` says why it cannot be used, if so."""

    name: str
    certificates: tuple[Certificate, ...]
    problem: str | None = None


def directory_of(state_dir: Path) -> Path:
    """Where the certificates of this host are."""
    return state_dir / "ca"


def read_bundle(path: str | Path) -> str:
    """The PEM text at *path*. Raises :class:`errors.InvalidValueError`. Blocks."""
    try:
        # O_NONBLOCK: a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise errors.InvalidValueError(f"{path}: not a regular file")
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise errors.InvalidValueError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BUNDLE_BYTES:
        raise errors.InvalidValueError(f"{path}: larger than {MAX_BUNDLE_BYTES} bytes")
    # What is around the blocks may be in any language.
    return data.decode("ascii", errors="ignore")


def certificates_in(pem: str, where: str) -> tuple[Certificate, ...]:
    """The CA certificates of *pem*, at least one. Raises :class:`errors.InvalidValueError`."""
    blocks = re.findall(
        r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, flags=re.DOTALL
    )
    if not blocks:
        raise errors.InvalidValueError(f"{where}: no PEM certificate in it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata="\n".join(blocks))
    except ssl.SSLError:
        raise errors.InvalidValueError(f"{where}: a certificate in it is malformed") from None
    found = context.get_ca_certs()
    if not found:
        raise errors.InvalidValueError(
            f"{where}: the certificate in it is not one of a certificate authority (CA:TRUE)"
        )
    return tuple(_certificate(entry) for entry in found)


def usable_certificates(path: str | Path, now: float) -> str:
    """The PEM text at *path*, whose certificates are all in force.

    Raises :class:`errors.InvalidValueError`. Blocks.
    """
    pem = read_bundle(path)
    for certificate in certificates_in(pem, str(path)):
        if certificate.expires_at <= now:
            day = time.strftime("%Y-%m-%d", time.gmtime(certificate.expires_at))
            raise errors.InvalidValueError(
                f"{path}: the certificate of {certificate.subject} expired on {day}"
            )
    return pem


def add(directory: Path, source: Path, name: str | None, now: float) -> AddedFile:
    """Trust what is in *source*, under *name* or that of the file. Blocks.

    The same again changes nothing. Raises :class:`errors.InvalidValueError` for what is no
    certificate or not in force, and for a name that is taken; :class:`errors.StorageError`.
    """
    name = source.stem if name is None else name
    if _NAME.fullmatch(name) is None:
        raise errors.InvalidValueError(
            f"{name[:120]!r} cannot be a name: use letters, digits and ._+-; give one with --name"
        )
    pem = usable_certificates(source, now)
    import tempfile  # a few milliseconds that every fetch would have to wait for

    target = directory / f"{name}{_SUFFIX}"
    if target.exists() and read_bundle(target) != pem:
        raise errors.InvalidValueError(
            f"{name} is there already, with other certificates; remove it first, or give another "
            "--name"
        )
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as fresh:
            fresh.write(pem)
            fresh.flush()
            os.fchmod(fresh.fileno(), 0o644)
            os.fsync(fresh.fileno())
        os.replace(fresh.name, target)
    except OSError as error:
        raise errors.StorageError(f"{target}: cannot be written: {error.strerror}") from error
    return AddedFile(name, certificates_in(pem, name))


def added(directory: Path) -> list[AddedFile]:
    """What was added, by name. Blocks. Raises :class:`errors.StorageError`."""
    found = []
    for path in _files(directory):
        try:
            certificates = certificates_in(read_bundle(path), str(path))
            found.append(AddedFile(path.stem, certificates))
        except errors.InvalidValueError as error:
            found.append(AddedFile(path.stem, (), str(error)))
    return found


def remove(directory: Path, name: str) -> None:
    """Trust it no longer. Raises :class:`errors.InvalidValueError` where there is none."""
    path = directory / f"{name}{_SUFFIX}"
    if path not in _files(directory):
        raise errors.InvalidValueError(
            f"no certificate is called {name!r}; ddfs ca list shows those there are"
        )
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise errors.StorageError(f"{path}: cannot be removed: {error.strerror}") from error


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.suffix == _SUFFIX)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise errors.StorageError(f"{directory}: cannot be read: {error.strerror}") from error


def _certificate(entry: Mapping[str, object]) -> Certificate:
    subject = entry.get("subject", ())
    assert isinstance(subject, tuple)
    pairs = [pair for part in subject for pair in part]
    names = [value for key, value in pairs if key == "commonName"]
    text = names[-1] if names else ", ".join(value for _, value in pairs) or "(without a name)"
    return Certificate(text, float(ssl.cert_time_to_seconds(str(entry["notAfter"]))))
