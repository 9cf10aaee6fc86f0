"""Fixtures; see primary_filesystems.py."""

import pytest
from primary_filesystems import SIZES, mounted


@pytest.fixture(params=list(SIZES))
def file_system(request, tmp_path):
    """Each kind in turn."""
    with mounted(request.param, tmp_path) as target:
        yield target


@pytest.fixture
def small(tmp_path):
    """A tmpfs of 32 MiB."""
    with mounted("tmpfs", tmp_path) as target:
        yield target
