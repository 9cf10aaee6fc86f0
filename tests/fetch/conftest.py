from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_proxy_from_outside(monkeypatch):
    """The machine's proxy settings are no part of a test."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
