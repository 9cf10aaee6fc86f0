"""How fast bytes may come: one limit for all fetches together, and one for each.

:class:`Pacing` decides and is pure: token buckets that may go into debt, and among the
fetches that wait, the one that had least goes first. So a fetch with one connection and one
with ten have the same share when the sum is the limit, and what a fetch does not use goes
to the others. :class:`Pacer` is the thread-safe shell: receiving threads pay for what they
have received and wait until that was due. Paying afterwards needs no guess at how much will
come; TCP's window holds the mirror back meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ddfs.model import KiB

# What may come at once after a pause, in seconds of the rate. Longer ones would be felt on
# the link, shorter ones lose speed to the clock of sleeping threads.
BURST_SECONDS: Final = 0.1

# How far a fetch that was away for a moment (a mirror's hiccup, a new request) may catch up.
CATCH_UP_SECONDS: Final = 0.25

# One receive under a limit: small enough that many connections at a low rate take turns
# often, large enough that a turn costs nothing beside it.
MIN_QUANTUM_BYTES: Final = 16 * KiB
MAX_QUANTUM_BYTES: Final = 256 * KiB
_QUANTA_PER_SECOND: Final = 128

# How often a waiting thread looks by itself, should a wake-up get lost.
_POLL_SECONDS: Final = 1.0


class Bucket:
    """Tokens for bytes, filled at *rate* (bytes per second; None: never empty)."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._level = 0.0
        self._at: float | None = None

    def refill(self, now: float) -> None:
        """Let time pass."""
        if self.rate is None:
            self._level = 0.0
        elif self._at is not None and now > self._at:
            cap = self.rate * BURST_SECONDS
            # A debt that was made at a higher rate is not carried on for minutes.
            self._level = min(cap, max(self._level, -self.rate) + (now - self._at) * self.rate)
        self._at = now if self._at is None else max(self._at, now)

    def take(self, count: int) -> None:
        """Spend; below zero is a debt."""
        if self.rate is not None:
            self._level -= count

    def seconds_to_open(self) -> float:
        """How long until something may be taken, from the last :meth:`refill`."""
        return 0.0 if self.rate is None or self._level >= 0 else -self._level / self.rate


class Share:
    """What one fetch has had: its own bucket, and its place among the others."""

    def __init__(self) -> None:
        self.bucket = Bucket(None)
        self.served = 0.0
        self.waiting: deque[Ticket] = deque()


class Ticket:
    """*count* bytes that a fetch wants to have paid. ``is_granted`` once they are."""

    __slots__ = ("count", "is_granted", "share", "wake")

    def __init__(self, share: Share, count: int, wake: threading.Event | None = None) -> None:
        self.share = share
        self.count = count
        self.wake = wake
        self.is_granted = False


class Pacing:
    """Who may go on, when. Rates in bytes per second, None for no limit; time an argument."""

    def __init__(self, total: float | None = None, each: float | None = None) -> None:
        self._total = Bucket(total)
        self._each = each
        # Those with tickets that wait, in the order in which they came.
        self._shares: dict[int, Share] = {}
        self._served = 0.0

    def change(self, total: float | None, each: float | None) -> None:
        """Other limits, from the next look on."""
        self._total.rate, self._each = total, each

    def ask(self, ticket: Ticket) -> None:
        """Put *ticket* behind the others of its fetch."""
        share = ticket.share
        if not share.waiting:
            # Who was away catches up a little and no more: unused time is not saved up.
            rate = self._total.rate or 0.0
            share.served = max(share.served, self._served - CATCH_UP_SECONDS * rate)
            self._shares[id(share)] = share
        share.waiting.append(ticket)

    def drop(self, ticket: Ticket) -> None:
        """Nobody waits for *ticket* any more; without effect once it was granted."""
        share = ticket.share
        if ticket in share.waiting:
            share.waiting.remove(ticket)
        if not share.waiting:
            self._shares.pop(id(share), None)

    def grant(self, now: float) -> list[Ticket]:
        """The tickets that are due now, in order."""
        self._total.refill(now)
        for share in self._shares.values():
            share.bucket.rate = self._each
            share.bucket.refill(now)
        granted: list[Ticket] = []
        while self._total.seconds_to_open() == 0:
            ready = [s for s in self._shares.values() if s.bucket.seconds_to_open() == 0]
            if not ready:
                break
            granted.append(self._serve(min(ready, key=lambda share: share.served)))
        return granted

    def _serve(self, share: Share) -> Ticket:
        ticket = share.waiting.popleft()
        self._served = share.served
        share.served += ticket.count
        share.bucket.take(ticket.count)
        self._total.take(ticket.count)
        ticket.is_granted = True
        if not share.waiting:
            del self._shares[id(share)]
        return ticket

    def seconds_to_next(self) -> float | None:
        """How long after the last :meth:`grant` the next ticket is due; None without one."""
        if not self._shares:
            return None
        own = min(share.bucket.seconds_to_open() for share in self._shares.values())
        return max(own, self._total.seconds_to_open())

    def first_waiting(self) -> Ticket | None:
        """Any ticket that waits in a thread."""
        tickets = (ticket for share in self._shares.values() for ticket in share.waiting)
        return next((ticket for ticket in tickets if ticket.wake is not None), None)


class Pacer:
    """The limits of a process; thread-safe. ``is_limited`` is what everybody else looks at."""

    def __init__(self, total: int | None = None, each: int | None = None) -> None:
        self._lock = threading.Lock()
        self._pacing = Pacing()
        # One of the waiting threads keeps the time for all: were each to wake for every
        # grant, a hundred connections would do little else.
        self._leader: Ticket | None = None
        self.change(total, each)

    def change(self, total: int | None, each: int | None) -> None:
        """Limit the sum to *total* and every fetch to *each* bytes per second; at once."""
        with self._lock:
            self._pacing.change(total, each)
            self.total, self.each = total, each
            lowest = min((rate for rate in (total, each) if rate is not None), default=None)
            self.quantum = MAX_QUANTUM_BYTES
            if lowest is not None:
                wanted = lowest // _QUANTA_PER_SECOND
                self.quantum = min(max(wanted, MIN_QUANTUM_BYTES), MAX_QUANTUM_BYTES)
            self.is_limited = lowest is not None
            self._grant()
            if self._leader is not None and self._leader.wake is not None:
                self._leader.wake.set()

    def pay(
        self, share: Share, count: int, wake: threading.Event, is_aborted: Callable[[], bool]
    ) -> None:
        """Wait in a thread until *count* bytes are paid, or *wake* is set after an abort."""
        ticket = Ticket(share, count, wake)
        with self._lock:
            self._pacing.ask(ticket)
        while (seconds := self._look(ticket, wake, is_aborted)) is not None:
            wake.wait(seconds)

    def _look(
        self, ticket: Ticket, wake: threading.Event, is_aborted: Callable[[], bool]
    ) -> float | None:
        """How long to wait until the next look; None when it is over."""
        with self._lock:
            wake.clear()
            self._grant()
            if ticket.is_granted or is_aborted():
                self._pacing.drop(ticket)
                self._resign(ticket)
                return None
            if self._leader is None:
                self._leader = ticket
            if self._leader is not ticket:
                return _POLL_SECONDS
            return min(self._pacing.seconds_to_next() or 0.0, _POLL_SECONDS)

    def _grant(self) -> None:
        for ticket in self._pacing.grant(time.monotonic()):
            if ticket.wake is not None:
                ticket.wake.set()

    def _resign(self, ticket: Ticket) -> None:
        if self._leader is not ticket:
            return
        self._leader = None
        following = self._pacing.first_waiting()
        if following is not None and following.wake is not None:
            following.wake.set()

    # -- for who waits in an event loop ---------------------------------------------

    def ask(self, share: Share, count: int) -> Ticket:
        """A ticket to look at with :meth:`seconds_until`, and to :meth:`drop` in the end."""
        ticket = Ticket(share, count)
        with self._lock:
            self._pacing.ask(ticket)
        return ticket

    def seconds_until(self, ticket: Ticket) -> float:
        """When to look again; 0 once *ticket* is granted."""
        with self._lock:
            self._grant()
            if ticket.is_granted:
                return 0.0
            return min(max(self._pacing.seconds_to_next() or 0.0, 0.001), _POLL_SECONDS)

    def drop(self, ticket: Ticket) -> None:
        """Whatever became of *ticket*, nobody waits for it any more."""
        with self._lock:
            self._pacing.drop(ticket)


class Pace:
    """One fetch's way to the limits: its share of the :class:`Pacer`."""

    __slots__ = ("pacer", "share")

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.share = Share()

    def pay(self, count: int, wake: threading.Event, is_aborted: Callable[[], bool]) -> None:
        """As :meth:`Pacer.pay`."""
        self.pacer.pay(self.share, count, wake, is_aborted)


# For what runs outside of any limit.
UNPACED: Final = Pace(Pacer())
