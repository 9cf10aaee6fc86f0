"""What is to be deployed, and what was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddfs import errors
from ddfs.model import MiB, RbdPool
from ddfs.names import validate_machine_name

# cloud-init itself takes 16 KiB from many clouds; more than this is no configuration.
MAX_USER_DATA_BYTES: Final = MiB

# A machine that gets less does not even load its kernel; more than this has no host.
MIN_MEMORY_MIB: Final = 16
MAX_MEMORY_MIB: Final = 64 * 1024 * 1024
MAX_VCPUS: Final = 4096


@dataclass(frozen=True, slots=True)
class DeployOrder:
    """A domain called *name* from *template*, its disk in *pool*.

    ``disk_size`` in bytes, None for the template's. ``document`` is the XML of a domain to
    fill in, ``user_data`` cloud-init's; None for none. The others as in
    :class:`ddfs.virt.domain_document.Machine`. ``arch`` None: the host's, or the document's.
    ``untested``: also in a kind of pool that was never tried by us.
    """

    template: str
    name: str
    pool: str
    memory_mib: int | None = None
    vcpus: int | None = None
    disk_size: int | None = None
    network: str | None = None
    arch: str | None = None
    user_data: bytes | None = None
    document: str | None = None
    untested: bool = False

    def __post_init__(self) -> None:
        validate_machine_name(self.name)
        if self.memory_mib is not None and not MIN_MEMORY_MIB <= self.memory_mib <= MAX_MEMORY_MIB:
            raise errors.InvalidValueError(
                f"memory: {self.memory_mib} MiB cannot be; write {MIN_MEMORY_MIB}M or more"
            )
        if self.vcpus is not None and not 1 <= self.vcpus <= MAX_VCPUS:
            raise errors.InvalidValueError(f"vcpus: {self.vcpus} cannot be; write 1 to {MAX_VCPUS}")
        if self.user_data is not None and len(self.user_data) > MAX_USER_DATA_BYTES:
            raise errors.InvalidValueError(f"user data: more than {MAX_USER_DATA_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class Deployed:
    """What runs now. With *rbd*, disk and seed are images there, as ``POOL/IMAGE``."""

    name: str
    uuid: str
    disk: Path
    seed: Path | None
    rbd: RbdPool | None = None
