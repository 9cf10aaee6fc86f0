"""The host as libvirt sees it, and the domains that are deployed on it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import libvirt

from ddfs import errors
from ddfs.virt.connection import Libvirt
from ddfs.virt.domain_document import Machine, filled_document, own_document
from ddfs.virt.domains import lookup


@dataclass(frozen=True, slots=True)
class HostFacts:
    """``arch`` as in ``<type arch=…>``; ``hypervisor`` is ``kvm`` where it can be used.

    ``free_memory_bytes`` counts what caches would give back.
    """

    arch: str
    hypervisor: str
    free_memory_bytes: int


class Machines:
    """Domains of *libvirt*, by the UUID that the caller chooses. All raise LibvirtError."""

    def __init__(self, libvirt: Libvirt) -> None:
        self._libvirt = libvirt

    async def facts(self) -> HostFacts:
        """What the host is and has free now."""
        return await self._libvirt.call(_facts)

    async def has_domain(self, name: str) -> bool:
        """Whether a domain of that name is there, running or not."""
        try:
            await self._libvirt.call(lambda c: lookup(c, name))
        except errors.LibvirtError as error:
            if error.code == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise
        return True

    async def network_problem(self, name: str) -> str | None:
        """Why no domain starts on the network *name* now; None if one may."""
        try:
            active = await self._libvirt.call(
                lambda c: bool(c.networkLookupByName(name).isActive())
            )
        except errors.LibvirtError as error:
            if error.code == libvirt.VIR_ERR_NO_NETWORK:
                return f"no network is called {name!r}; --network chooses one, or none"
            raise
        return None if active else f"the network {name} is not active; virsh net-start {name}"

    async def define(self, machine: Machine, document: str | None) -> None:
        """Define *machine*, from the operator's *document* or one of our own."""
        xml = filled_document(document, machine) if document else own_document(machine)
        flags = libvirt.VIR_DOMAIN_DEFINE_VALIDATE
        await self._libvirt.call(lambda c: c.defineXMLFlags(xml, flags))

    async def start(self, uuid: str) -> None:
        """Start it; its hooks run meanwhile."""
        await self._libvirt.call(lambda c: c.lookupByUUIDString(uuid).create())

    async def remove(self, uuid: str) -> None:
        """Destroy and undefine it, if it is there."""
        await self._libvirt.call(lambda c: _remove(c, uuid))


def _facts(connection: libvirt.virConnect) -> HostFacts:
    arch = connection.getInfo()[0]
    hypervisor = "qemu"
    with contextlib.suppress(libvirt.libvirtError):
        connection.getDomainCapabilities(None, arch, None, "kvm")
        hypervisor = "kvm"
    # KiB. getFreeMemory() alone takes a full page cache for a full host.
    memory = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    free_kib = sum(memory.get(key, 0) for key in ("free", "buffers", "cached"))
    return HostFacts(arch, hypervisor, free_kib * 1024)


def _remove(connection: libvirt.virConnect, uuid: str) -> None:
    try:
        domain = connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return
        raise
    if domain.isActive():
        try:
            domain.destroy()
        except libvirt.libvirtError as error:
            # Its guest may have ended it meanwhile.
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                raise
    domain.undefineFlags(
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    )
