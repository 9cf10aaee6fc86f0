"""One libvirtd and one set of mirrors for all system tests; a daemon for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import namespace
from lab.domain import Disk, Domain, make_overlay
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.scratch import scratch_directory
from lab.site import MIB, Published, Site, site

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = None
    if not namespace.is_inside():
        reason = "needs root, for mounts and a libvirtd of its own"
    elif not os.path.exists("/dev/fuse"):
        reason = "needs /dev/fuse"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.system)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def lab_directory() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def session_libvirtd(lab_directory: Path) -> Iterator[Libvirtd]:
    with Libvirtd(lab_directory) as libvirtd:
        yield libvirtd


@pytest.fixture
def libvirtd(session_libvirtd: Libvirtd) -> Iterator[Libvirtd]:
    """libvirtd without domains and pools, before and after."""
    yield session_libvirtd
    session_libvirtd.restore()


@pytest.fixture
def directory(lab_directory: Path, request: pytest.FixtureRequest) -> Path:
    """The test's own directory, one that QEMU may enter. A short name: sockets lie in it."""
    number = len(list(lab_directory.iterdir()))
    path = lab_directory / f"{number:03}-{request.node.originalname.removeprefix('test_')[:12]}"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def fast_site(lab_directory: Path) -> Iterator[Site]:
    """Three mirrors as fast as they can. Nobody stops or pauses them."""
    with site(lab_directory / "fast", [None, None, None]) as shop:
        yield shop


@pytest.fixture(scope="session")
def small(fast_site: Site) -> Published:
    """A bootable image of 8 MiB on the fast mirrors."""
    return fast_site.publish("small", size=8 * MIB)


@pytest.fixture
def host(directory: Path) -> Iterator[Host]:
    """A host whose daemon runs."""
    with Host(directory / "host") as host:
        host.serve()
        yield host


@pytest.fixture
def make_vm(libvirtd: Libvirtd) -> Callable[..., Domain]:
    """``make_vm(host, name, image)``: a domain on an overlay over *image*, which is a template
    or not; making it opens no template.
    """

    def make(host: Host, name: str, image: Path) -> Domain:
        libvirtd.install_hook(host.hook())
        size = host.template(image.stem)["virtual_size"] if image.parent == host.templates else None
        overlay = make_overlay(host.vms / f"{name}.qcow2", image, virtual_size=size)
        domain = Domain(name, (Disk(overlay),), host.vms / f"{name}.serial")
        libvirtd.define(domain, host.vms)
        return domain

    return make
