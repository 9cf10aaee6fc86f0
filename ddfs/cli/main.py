"""The command line."""

from __future__ import annotations


def main() -> None:
    """Entry point; replaced by the real one."""
    print("ddfs")
