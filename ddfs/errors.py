"""The one tree of exceptions, split by whose fault it is.

::

    DdfsError
    ├── RequestError              the caller asked for something that cannot be
    │   ├── ConfigError           a setting is wrong
    │   ├── InvalidValueError     a name, address, digest or option is malformed
    │   ├── UnknownTemplateError  no template of that name
    │   ├── TemplateExistsError   the name is taken, for ever, by other content
    │   ├── TemplateInUseError    something still needs it
    │   └── WritableTemplateError a domain would write to a template
    ├── SourceError               what was published is wrong
    │   ├── DocumentError         a metalink or checksum file is not usable
    │   ├── ImageError            the image is refused by the inspector
    │   ├── MirrorError           one mirror failed; carries its address
    │   ├── ChecksumError         the bytes are not what the manifest says
    │   ├── SignatureError        no key that counts has signed the bytes
    │   └── MirrorsExhaustedError every mirror failed; carries all their errors
    ├── HostError                 this host cannot do it now
    │   ├── StorageFullError      no room on the primary storage
    │   ├── StorageError          the disk or file system failed
    │   ├── NameTakenError        another file has the name in primary storage
    │   ├── CatalogueError        the database is broken or read-only
    │   ├── AlreadyRunningError   another daemon owns the state
    │   ├── MountError            the template pool cannot be mounted
    │   ├── LibvirtError          libvirt refused or failed; carries its code
    │   ├── UnsuitableHostError   a domain cannot be deployed there
    │   ├── NotDeployedError      no host could run a domain; carries their reasons
    │   └── DaemonDownError       nobody answers on the control socket
    └── NotReadyError             it will be there, but is not now
        ├── NotHereYetError       the gate's refusal, with progress
        ├── FetchRestingError     the last fetch failed and rests before the next
        └── CancelledFetchError   somebody cancelled the fetch

Every leaf knows its errno (what a FUSE caller sees), its HTTP status (what an API caller
sees) and its exit code (what a shell sees). The text of an error says what happened, to
what, and what to do about it. Misuse by our own code is ``ValueError`` or ``RuntimeError``
and ends in a traceback; it never appears in this tree.
"""

from __future__ import annotations

import errno as _errno
from typing import ClassVar

# Exit codes, as in the README. 1 stays free for tracebacks, 2 is what shells and
# argument parsers use for wrong usage.
EXIT_REQUEST = 2
EXIT_SOURCE = 3
EXIT_HOST = 4
EXIT_NOT_READY = 5
# No error: what was asked about is not as it is here (check, apply --diff).
EXIT_DIFFERENT = 6


class DdfsError(Exception):
    """Root of everything that ddfs reports to people. Not raised itself."""

    errno: ClassVar[int] = _errno.EIO
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = EXIT_HOST

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @classmethod
    def kind(cls) -> str:
        """The stable name that the API and ``--json`` carry, for instance ``unknown-template``."""
        name = cls.__name__.removesuffix("Error")
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


class RequestError(DdfsError):
    """The caller's fault."""

    errno = _errno.EINVAL
    http_status = 400
    exit_code = EXIT_REQUEST


class ConfigError(RequestError):
    """A setting is missing, unknown or out of range."""


class InvalidValueError(RequestError):
    """A name, address, digest or option is malformed."""


class UnknownTemplateError(RequestError):
    """No template has that name."""

    errno = _errno.ENOENT
    http_status = 404


class TemplateExistsError(RequestError):
    """The name is bound to other content, and a name is bound for ever."""

    errno = _errno.EEXIST
    http_status = 409


class TemplateInUseError(RequestError):
    """A fetch, an overlay or a domain still needs the template."""

    errno = _errno.EBUSY
    http_status = 409


class WritableTemplateError(RequestError):
    """A domain has a template as a disk that it could write to."""

    errno = _errno.EROFS
    http_status = 409


class SourceError(DdfsError):
    """The publisher's fault, or a mirror's."""

    errno = _errno.EIO
    http_status = 502
    exit_code = EXIT_SOURCE


class DocumentError(SourceError):
    """A metalink or checksum file is malformed, too large, or says nothing usable."""


class ImageError(SourceError):
    """The inspector refuses the image."""


class MirrorError(SourceError):
    """One mirror failed. ``url`` says which; the text does not repeat it."""

    def __init__(self, url: str, message: str) -> None:
        super().__init__(message)
        self.url = url

    def __str__(self) -> str:
        return f"{self.url}: {self.message}"


class ChecksumError(SourceError):
    """The bytes are not what the manifest says, wherever they were fetched."""


class SignatureError(SourceError):
    """The bytes are not signed as they have to be; fetching them again would not help."""


class MirrorsExhaustedError(SourceError):
    """Every mirror failed. ``failures`` has the last error of each, in order of trial."""

    def __init__(self, message: str, failures: tuple[MirrorError, ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures

    def __str__(self) -> str:
        return "; ".join([self.message, *(str(failure) for failure in self.failures)])


class HostError(DdfsError):
    """The fault of this host."""

    errno = _errno.EIO
    http_status = 500
    exit_code = EXIT_HOST


class StorageFullError(HostError):
    """There is no room for what was asked, counting what is reserved for others.

    ``missing`` is how many bytes more would do, 0 where nobody knows.
    """

    errno = _errno.ENOSPC
    http_status = 507

    def __init__(self, message: str, missing: int = 0) -> None:
        super().__init__(message)
        self.missing = missing


class StorageError(HostError):
    """A file system operation failed."""


class NameTakenError(HostError):
    """A file that is not ours has the name in primary storage. It is never overwritten."""

    errno = _errno.EEXIST
    http_status = 409


class CatalogueError(HostError):
    """The catalogue cannot be read or written."""


class AlreadyRunningError(HostError):
    """Another daemon owns the state directory or the primary storage."""

    errno = _errno.EBUSY
    http_status = 409


class MountError(HostError):
    """The template pool cannot be mounted."""


class LibvirtError(HostError):
    """libvirt refused or failed. ``code`` is its VIR_ERR number, None without one."""

    http_status = 502

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class UnsuitableHostError(HostError):
    """A domain cannot be deployed on a host; nothing was done there."""

    http_status = 409


class NotDeployedError(HostError):
    """No host could run a domain; the text has every host's reason."""

    http_status = 502


class DaemonDownError(HostError):
    """Nobody answers on the control socket."""

    http_status = 503


class NotReadyError(DdfsError):
    """Nobody's fault: it takes time, or needs a hand."""

    errno = _errno.EAGAIN
    http_status = 503
    exit_code = EXIT_NOT_READY


class NotHereYetError(NotReadyError):
    """Templates under a domain are still being fetched."""


class FetchRestingError(NotReadyError):
    """The last fetch failed and rests; the text has its reason and when it goes on."""

    errno = _errno.EIO


class CancelledFetchError(NotReadyError):
    """Somebody cancelled the fetch. Readers see EIO; what is here is kept."""

    errno = _errno.EIO
    http_status = 409
