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


NODE = """
<node><domain type='test'><name>test</name><memory>8192</memory><os><type>hvm</type></os></domain>
</node>
"""


@pytest.fixture
async def driver(tmp_path):
    """libvirt's own test driver with one domain, "test", that runs.

    From a file, because all connections to test:///default share their domains.
    """
    (tmp_path / "node.xml").write_text(NODE)
    connection = Libvirt(f"test://{tmp_path}/node.xml")
    yield connection
    await connection.close()
