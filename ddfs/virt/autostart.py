"""Which domains ``ddfs autostart`` starts: a mark in their own XML.

In ``<metadata>`` it goes where the domain goes, is seen in ``virsh dumpxml``, and needs no
place of ours that could disagree. libvirt's own autostart is taken off a marked domain: it
is serial, and libvirtd answers nobody until the last hook has ended (facts/libvirt.md 0.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import libvirt

from ddfs.virt.connection import Libvirt
from ddfs.virt.domains import lookup

NAMESPACE: Final = "urn:ddfs:autostart"
_KEY: Final = "ddfs"
_CONFIG: Final = libvirt.VIR_DOMAIN_AFFECT_CONFIG

# What the mark remembers: whether libvirt's own autostart was on.
_WAS_ON: Final = "<autostart libvirt='yes'/>"
_WAS_OFF: Final = "<autostart libvirt='no'/>"


@dataclass(frozen=True, slots=True)
class Marked:
    """A domain that is marked, and whether it runs."""

    domain: str
    active: bool


class Autostart:
    """The marks. All methods raise :class:`errors.LibvirtError`."""

    def __init__(self, libvirt: Libvirt) -> None:
        self._libvirt = libvirt

    async def marked(self) -> list[Marked]:
        """The marked domains, by name."""
        return await self._libvirt.call(_marked)

    async def mark(self, domain: str, on: bool) -> Marked:
        """Mark *domain*, or take the mark off and put libvirt's autostart back as it was."""
        return await self._libvirt.call(lambda c: _mark(lookup(c, domain), on))


def _marked(connection: libvirt.virConnect) -> list[Marked]:
    found = []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT):
        try:
            if _mark_of(domain) is not None:
                found.append(Marked(domain.name(), bool(domain.isActive())))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # undefined meanwhile
                raise
    return sorted(found, key=lambda marked: marked.domain)


def _mark(domain: libvirt.virDomain, on: bool) -> Marked:
    before = _mark_of(domain)
    if on and before is None:
        text = _WAS_ON if domain.autostart() else _WAS_OFF
        _set(domain, text)
    if on:
        domain.setAutostart(0)
    elif before is not None:
        _set(domain, None)
        if "yes" in before:
            domain.setAutostart(1)
    return Marked(domain.name(), bool(domain.isActive()))


def _mark_of(domain: libvirt.virDomain) -> str | None:
    try:
        return str(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, _CONFIG))
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        return None


def _set(domain: libvirt.virDomain, text: str | None) -> None:
    # The key is the prefix of the element's names.
    kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
    domain.setMetadata(kind, text, _KEY, NAMESPACE, _CONFIG)
