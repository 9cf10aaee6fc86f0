"""Who takes in bytes while more arrive than this host can hash and write.

Of connections that all have bytes waiting, the one that is furthest in front goes first, and
the others leave theirs in the kernel, where TCP holds their mirrors back. So the file grows
from the front, the whole-file hash finds its bytes where they have just been, and no core
works for a connection that has to wait in the end. What a reader waits for goes before all.
Where mirrors are slower than the host, which is nearly always, the gate is open to all.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable
from typing import Final

_CORES: Final = os.cpu_count() or 2

# How often a waiting thread looks whether it was aborted, or became urgent.
_POLL_SECONDS: Final = 0.1


def places(*, hashes: bool, decrypts: bool, cores: int = _CORES) -> int:
    """How many threads may take in at once, where each *hashes* pieces or *decrypts*."""
    # Taking in plain bytes costs as much as the hash of the whole file, which is made beside
    # it, and half of the cores are left to that. Hashing pieces makes it three times as much;
    # with TLS one thread often waits for what its mirror still encrypts, while others have
    # their bytes ready.
    return cores if hashes or decrypts else max(1, cores // 2)


class Gate:
    """*places* threads may be inside; one gate for each fetch. Thread-safe."""

    def __init__(self, places: int = 1) -> None:
        self._lock = threading.Lock()
        self._free = places
        # Ranks, and who waits; equal ones in the order of coming.
        self._waiting: list[tuple[int, int, threading.Lock]] = []
        self._count = 0

    def try_enter(self) -> bool:
        """Take a place if one is free; whoever waits has gone first."""
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                return True
        return False

    def enter(self, rank: Callable[[], int], is_aborted: Callable[[], bool]) -> bool:
        """Wait for a place; False, without one, when it was aborted meanwhile.

        *rank* is a position in the file, or something lower; it may change.
        """
        turn = threading.Lock()
        turn.acquire()
        ticket = self._push(rank(), turn)
        while not turn.acquire(timeout=_POLL_SECONDS):
            now = rank()
            if not (is_aborted() or now != ticket[0]) or not self._withdraw(ticket):
                continue
            if is_aborted():
                return False
            ticket = self._push(now, turn)
        return True

    def _push(self, rank: int, turn: threading.Lock) -> tuple[int, int, threading.Lock]:
        """Wait at *rank*; *turn* is released when a place is given, which may be at once."""
        with self._lock:
            self._count += 1
            ticket = (rank, self._count, turn)
            if self._free:
                self._free -= 1
                turn.release()
            else:
                heapq.heappush(self._waiting, ticket)
            return ticket

    def _withdraw(self, ticket: tuple[int, int, threading.Lock]) -> bool:
        with self._lock:
            if ticket not in self._waiting:
                return False
            self._waiting.remove(ticket)
            heapq.heapify(self._waiting)
            return True

    def is_wanted_before(self, rank: int) -> bool:
        """Whether somebody waits who goes before *rank*."""
        with self._lock:
            return bool(self._waiting) and self._waiting[0][0] < rank

    def leave(self) -> None:
        """Give the place to who waits furthest in front."""
        with self._lock:
            if self._waiting:
                heapq.heappop(self._waiting)[2].release()
            else:
                self._free += 1
