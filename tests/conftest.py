"""Every test runs in namespaces of its own: what one mounts or starts cannot outlive the run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "system"))

from lab import namespace


def pytest_configure(config: pytest.Config) -> None:
    """As root, starts the whole run again inside, before anything was collected."""
    if os.geteuid() != 0 or namespace.is_inside():
        return
    # Its replacement of standard output would otherwise go with us.
    config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
    namespace.enter()
