"""Paths as people type them."""

from __future__ import annotations

import os


def absolute(source: str) -> str:
    """A path means the same to the daemon, which runs in another directory."""
    return source if "://" in source else os.path.abspath(source)
