"""How many mirrors to try at once: a few first, more while the sum of rates grows. Pure."""

from __future__ import annotations

from typing import Final

from ddfs.model import MiB

# RFC 6249 section 7 asks to begin with few and to add while it helps.
FIRST_MIRRORS: Final = 4
# Below this much per mirror, connecting costs more than sharing saves.
BYTES_PER_MIRROR: Final = 2 * MiB
# Each busy mirror is a thread and a buffer of a megabyte.
MAX_ACTIVE: Final = 24

# The sum has to grow by this much for more mirrors to be worth asking.
GROWTH: Final = 1.05
# At least this long between two steps, and at most this long waiting for a measurement.
STEP_SECONDS: Final = 0.1
MEASURE_SECONDS: Final = 1.0
# With more than this to go, another mirror is worth a try even if the last did not help.
PATIENCE_SECONDS: Final = 10.0
# After this many steps that brought nothing the link is full.
MAX_FRUITLESS: Final = 2


class Widening:
    """The number of mirrors that may have been tried: ``width``. It only grows."""

    def __init__(self, size: int, mirrors: int) -> None:
        first = max(1, min(FIRST_MIRRORS, size // BYTES_PER_MIRROR))
        self.width = min(mirrors, first)
        self.limit = MAX_ACTIVE
        self._mirrors = mirrors
        self._lost = 0
        self._step = 1
        self._fruitless = 0
        self._base = 0.0
        self._widened_at: float | None = None
        self._has_begun_earlier = False

    def consider(
        self, now: float, *, rate: float, measured: bool, seconds_left: float | None, lost: int
    ) -> None:
        """Widen if it seems to help.

        *rate* is the sum of now, *measured* says that every busy mirror's part of it is
        known. *lost* counts tried mirrors that rest, are out, do not answer or are left
        alone as too slow: each is replaced at once.
        """
        if lost > self._lost:
            self.grow(lost - self._lost)
            self._lost = lost
        if self._widened_at is None:
            self._widened_at = now
        since = now - self._widened_at
        if since < STEP_SECONDS or not (measured or since >= MEASURE_SECONDS):
            return
        if seconds_left is None or seconds_left < 2 * STEP_SECONDS:
            return
        grew = rate >= GROWTH * self._base
        if not grew:
            self._fruitless += 1
        if self._fruitless >= MAX_FRUITLESS:
            # The link is full, or so it seems; look again now and then.
            if since < PATIENCE_SECONDS:
                return
            self._step = 1
        elif not grew and seconds_left <= PATIENCE_SECONDS:
            self._widened_at = now
            return
        self._base = max(self._base, rate)
        # Far from the end: as many as would bring it near, if the others are like these.
        patient = seconds_left > PATIENCE_SECONDS and self._fruitless < MAX_FRUITLESS
        missing = int(self.width * (seconds_left / PATIENCE_SECONDS - 1)) if patient else 0
        self.grow(max(self._step, min(missing, self.limit)))
        self._step *= 2
        self._widened_at = now

    def began_earlier(self, seconds: float) -> None:
        """The mirrors that are tried have been measured for *seconds* before the first look."""
        if self._widened_at is not None and not self._has_begun_earlier:
            self._widened_at -= seconds
        self._has_begun_earlier = True

    def grow(self, step: int) -> None:
        """Let *step* more be tried."""
        self.width = min(self._mirrors, self.width + step)
