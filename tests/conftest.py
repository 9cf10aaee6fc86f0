"""Every test runs in namespaces of its own: what one mounts or starts cannot outlive the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "system"))

from lab import namespace
from lab.partitions import loop_device, why_not

from tests.signature.openpgp import Signer

# A busy machine makes no test fail, and the same commit always gives the same answer: new
# examples are looked for by contrib/fuzz, not by whoever checks a commit.
settings.register_profile(
    "everywhere", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("everywhere")


def pytest_configure(config: pytest.Config) -> None:
    """As root, starts the whole run again inside, before anything was collected."""
    if os.geteuid() != 0 or namespace.is_inside():
        return
    # Its replacement of standard output would otherwise go with us.
    config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
    namespace.enter()


@pytest.fixture
def make_device() -> Iterator[Callable[..., Path]]:
    """``make_device(image, *options)``: a block device that is *image*; see losetup(8)."""
    if os.geteuid() != 0 or why_not() is not None:
        pytest.skip(f"no loop devices: {why_not() or 'needs root'}")
    with ExitStack() as stack:
        yield lambda image, *options: stack.enter_context(loop_device(image, *options))


@pytest.fixture(scope="session")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    """A key that signs."""
    found = Signer(tmp_path_factory.mktemp("signer"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    """Another one."""
    found = Signer(tmp_path_factory.mktemp("stranger"), "stranger")
    yield found
    found.close()
