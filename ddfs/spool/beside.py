"""The names of what an unfinished download leaves beside its destination."""

from __future__ import annotations

from pathlib import Path


def beside(destination: Path, suffix: str) -> Path:
    """Where the data (*suffix* ``part``) or the journal (``journal``) of *destination* is."""
    return destination.with_name(f".{destination.name}.ddfs-{suffix}")
