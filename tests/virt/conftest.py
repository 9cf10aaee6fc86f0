import shutil
import tempfile
from pathlib import Path

import pytest
from private_libvirtd import private_libvirtd

from ddfs.virt.connection import Libvirt


@pytest.fixture
def libvirtd():
    """A fresh one; not in tmp_path, whose names are too long for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="ddfs-virt-"))
    try:
        with private_libvirtd(directory) as daemon:
            yield daemon
    finally:
        shutil.rmtree(directory)


@pytest.fixture
async def connection(libvirtd):
    connection = Libvirt(libvirtd.uri)
    yield connection
    await connection.close()


@pytest.fixture
async def driver():
    """libvirt's own test driver: one domain, "test", that runs."""
    connection = Libvirt("test:///default")
    yield connection
    await connection.close()
