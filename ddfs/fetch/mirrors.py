"""How each mirror does: rates that count silence, strikes, rests. Pure; time is an argument."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ddfs.model import Mirror

# The memory of the rate. Short enough that a mirror that falls silent is at 1 % of its
# rate after 3.5 s without any timeout rule, long enough to bridge the gaps of a busy link.
RATE_MEMORY_SECONDS: Final = 0.75

# Shorter samples measure the scheduling of threads, not the mirror.
MIN_SAMPLE_SECONDS: Final = 0.04

# From here on a rate is believed enough to decide whether more mirrors would help.
TRUSTED_AGE_SECONDS: Final = 0.08
# Cutting a run costs its connection, and TCP's slow start takes some round trips.
SETTLED_AGE_SECONDS: Final = 0.6

# 1 + 2 + 4 seconds of rest, then out: a refusing mirror costs 7 s, a restarting one is met again.
MAX_FAILURES: Final = 4
FIRST_REST_SECONDS: Final = 1.0
# A mirror that comes back is not to be met by all who wait for it in the same second.
MAX_JITTER: Final = 0.5
# What Retry-After may ask for before it is the same as "not in this fetch".
MAX_REST_SECONDS: Final = 3600.0

# Wrong pieces until a mirror is out. The second proves that the first was no accident; a
# mirror that is the only one left gets one more.
MAX_REJECTED: Final = 2
MAX_REJECTED_ALONE: Final = 3

# A mirror found too slow to help is tried again after this, then after twice this, and so on.
REPROBE_SECONDS: Final = 15.0


class FailureKind(enum.Enum):
    """What a failed request says about the mirror."""

    TRANSIENT = "transient"  # reset, early end, silence, 5xx: rest, then again
    BUSY = "busy"  # 429 or 503: rest as long as it asks
    FINAL = "final"  # 404, another size, broken protocol: not again in this fetch


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed. ``retry_after`` is in seconds, from now."""

    kind: FailureKind
    message: str
    retry_after: float | None = None


@dataclass(slots=True)
class MirrorStanding:
    """What one fetch knows about one mirror. Rates in bytes per second.

    ``jitter`` is the share by which rests are longer here than elsewhere.
    """

    index: int
    jitter: float = 0.0
    rate: float | None = None
    latency: float | None = None
    rejected: int = 0
    failures: int = 0
    rests_until: float = 0.0
    out: str | None = None
    last_error: str | None = None
    is_tried: bool = False
    # It was asked for something, and has neither answered nor refused since.
    is_silent: bool = False
    is_blamed: bool = False
    is_rangeless: bool = False
    # It refused a second connection while the first one was busy.
    takes_one_only: bool = False
    slow_since: float | None = None
    _age: float = 0.0
    _pending_bytes: int = 0
    _pending_seconds: float = 0.0
    _slow_count: int = field(default=0)

    def is_usable(self, now: float) -> bool:
        """Whether it may be asked now."""
        return self.out is None and now >= self.rests_until

    def state(self, now: float) -> str:
        """How it stands while it is not busy, as :class:`statistics.MirrorStatistics` has it."""
        if self.out is not None:
            return "out"
        if not self.is_tried:
            return "untried"
        return "idle" if self.is_usable(now) else "resting"

    @property
    def is_trusted(self) -> bool:
        """Whether its rate was watched long enough to add it up with others."""
        return self.rate is not None and self._age >= TRUSTED_AGE_SECONDS

    @property
    def is_settled(self) -> bool:
        """Whether its rate was watched long enough to cut its work by it."""
        return self.rate is not None and self._age >= SETTLED_AGE_SECONDS

    @property
    def was_slow(self) -> bool:
        """Whether it was left alone as too slow before: it is then tried with one piece."""
        return self._slow_count > 0

    def observe(self, received: int, seconds: float) -> None:
        """Count *received* bytes in *seconds*, silence included, of a running request."""
        self._pending_bytes += received
        self._pending_seconds += seconds
        if self._pending_seconds < MIN_SAMPLE_SECONDS:
            return
        elapsed = self._pending_seconds
        sample = self._pending_bytes / elapsed
        self._pending_bytes, self._pending_seconds = 0, 0.0
        self._age += elapsed
        # A plain average at first: an exponential one would start from a lie.
        weight = max(1.0 - math.exp(-elapsed / RATE_MEMORY_SECONDS), elapsed / self._age)
        self.rate = sample if self.rate is None else self.rate + (sample - self.rate) * weight

    def answered(self, seconds: float) -> None:
        """Count the time from asking to the first byte."""
        self.is_silent = False
        self.latency = seconds if self.latency is None else 0.5 * (self.latency + seconds)

    def delivered(self) -> None:
        """A piece of it holds: earlier failures are forgiven."""
        self.failures = 0

    def fail(self, failure: Failure, now: float) -> None:
        """Let it rest, or put it out."""
        self.last_error = failure.message
        if self.out is not None:
            return
        if failure.kind is FailureKind.FINAL:
            self.out = failure.message
            return
        self.failures += 1
        if self.failures >= MAX_FAILURES:
            self.out = failure.message
            return
        rest = FIRST_REST_SECONDS * 2.0 ** (self.failures - 1)
        spread = rest * self.jitter
        if failure.retry_after is not None:
            rest = max(rest, min(failure.retry_after, MAX_REST_SECONDS))
            self.last_error += f" and asks to wait for {failure.retry_after:.0f} s"
        self.rests_until = now + rest + spread

    def reject(self, is_alone: bool) -> None:
        """Count a piece that did not match its hash."""
        self.rejected += 1
        self.last_error = "sent bytes that do not match the piece hashes"
        if self.rejected >= (MAX_REJECTED_ALONE if is_alone else MAX_REJECTED):
            self.out = f"sent {self.rejected} pieces that do not match their hashes"

    def blame(self, reason: str) -> None:
        """Others proved that it sent wrong bytes: out."""
        self.is_blamed = True
        self.out = self.last_error = reason

    def is_worth_a_probe(self, now: float) -> bool:
        """Whether it was left alone as too slow for so long that it may have recovered."""
        if self.slow_since is None:
            self.slow_since = now
            return False
        return now - self.slow_since >= REPROBE_SECONDS * 2.0**self._slow_count

    def forget_rate(self) -> None:
        """Start measuring anew, and wait twice as long before the next time."""
        self.rate, self._age = None, 0.0
        self._pending_bytes, self._pending_seconds = 0, 0.0
        self.slow_since = None
        self._slow_count += 1


def in_order(mirrors: Iterable[Mirror], location: str | None) -> list[Mirror]:
    """As the manifest has them, those at *location* first."""
    return sorted(mirrors, key=lambda m: location is not None and m.location != location)
