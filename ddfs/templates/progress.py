"""How far a template is, as one number."""

from __future__ import annotations

from ddfs.model import SpoolState
from ddfs.spool.holding import HoldingStatus


def progress_percent(holding: HoldingStatus, size: int) -> int:
    """0 to 100; 100 only when published."""
    if holding.state is SpoolState.PUBLISHED:
        return 100
    return min(99, 100 * holding.bytes_here // size) if size else 0
