"""libvirt's domains, as far as ddfs needs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import libvirt

from ddfs import errors
from ddfs.virt.connection import Libvirt, is_down


class Domains:
    """The domains of *libvirt*. All methods raise :class:`errors.LibvirtError`.

    For an unknown name its code is VIR_ERR_NO_DOMAIN. libvirtd answers for no domain, and
    lists none, while a hook holds one; so none of these may be awaited to answer a hook.
    """

    def __init__(self, libvirt: Libvirt) -> None:
        self._libvirt = libvirt

    async def domain_xml(self, name: str, *, live: bool = False) -> bytes:
        """The XML with which *name* starts next; *live*: as it runs now, if it does.

        A live one has the backing chains in it (virDomainGetXMLDesc).
        """
        flags = 0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE
        return await self._libvirt.call(lambda c: lookup(c, name).XMLDesc(flags).encode())

    async def all_xml(self) -> dict[str, bytes]:
        """The XML of every domain by its name, running or not.

        A running one that starts differently next time has a second entry, ``NAME (when
        started again)``.
        """
        return await self._libvirt.call(lambda c: dict(_all_xml(c)))

    async def saved(self) -> set[str]:
        """The names of those whose memory waits on disk for their next start (managed save)."""
        flag = libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE
        return await self._libvirt.call(lambda c: {d.name() for d in c.listAllDomains(flag)})

    async def is_active(self, name: str) -> bool:
        """Whether *name* runs (or is paused, or about to run)."""
        return await self._libvirt.call(lambda c: bool(lookup(c, name).isActive()))

    async def start(self, name: str) -> None:
        """Start *name*; returns when it runs. Its hooks run meanwhile and may refuse.

        After a cancellation libvirt goes on with the start.
        """

        def create(connection: libvirt.virConnect) -> None:
            lookup(connection, name).create()

        try:
            await self._libvirt.call(create)
        except errors.LibvirtError as error:
            if error.code == libvirt.VIR_ERR_NO_DOMAIN or is_down(error):
                raise
            # libvirt's own words do not say which, as in "domain is already running".
            raise errors.LibvirtError(f"{name} is not started: {error}", error.code) from error


def lookup(connection: libvirt.virConnect, name: str) -> libvirt.virDomain:
    """The domain called *name*; for :meth:`Libvirt.call` of this package."""
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        raise errors.LibvirtError(
            f"no domain called {name!r}; virsh list --all shows those there are",
            libvirt.VIR_ERR_NO_DOMAIN,
        ) from error


def _all_xml(connection: libvirt.virConnect) -> Iterator[tuple[str, bytes]]:
    for domain in connection.listAllDomains(0):
        with _unless_gone():
            name, now = domain.name(), domain.XMLDesc(0)
            yield name, now.encode()
            if domain.isActive() and domain.isPersistent():
                later = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
                if later != now:
                    yield f"{name} (when started again)", later.encode()


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    """A domain may be undefined while we go through the list."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
