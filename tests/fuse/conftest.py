from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fuse_driver
import pytest
from fuse_driver import Driver, Reader


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Starts servers on ``tmp_path/pool``, with switches; leaves nothing behind."""
    reason = fuse_driver.missing()
    if reason:
        pytest.skip(reason)
    drivers: list[Driver] = []

    def start(*switches: str) -> Driver:
        driver = Driver(tmp_path / "pool", *switches)
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        driver.dispose()
    Reader.dispose()


@pytest.fixture
def pool(mount: Callable[..., Driver]) -> Driver:
    """A running server with all cures."""
    driver = mount()
    assert "ready" in driver.greeting
    return driver
