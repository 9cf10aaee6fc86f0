import os

import pytest
from catalogue_values import run

from ddfs.catalogue.catalogue import Catalogue


@pytest.fixture
def catalogue(tmp_path):
    catalogue = Catalogue.open(tmp_path / "state")
    yield catalogue
    catalogue.close()


@pytest.fixture
def small(tmp_path):
    """A tmpfs of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    target = tmp_path / "small"
    target.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(target))
    yield target
    run("umount", "-l", str(target))
