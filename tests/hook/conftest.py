import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hook_host import Host


@pytest.fixture
def host() -> Iterator[Host]:
    # A short path: that of a Unix socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="hook-") as root:
        made = Host(Path(root), environ={"DDFS_CONFIG": f"{root}/ddfs.toml"})
        made.templates.mkdir(parents=True)
        made.write_settings()
        yield made
