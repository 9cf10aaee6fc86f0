"""How long a failed fetch rests before it is tried again. Pure.

A source that is down is asked again after growing pauses and not at every read: a guest
retries a failed read within milliseconds, and a thousand readers would become a thousand
rounds to every mirror. What is not signed as it has to be is not fetched again by itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from ddfs import errors

# Seconds after the first, second … failure in a row; the last one repeats. The first is
# short, since most failures are a network that comes back.
PAUSES_SECONDS: Final = (10.0, 30.0, 60.0, 300.0, 900.0)

# The start of a domain is asked for by somebody, but may be asked for in a loop: it cuts a
# rest short, after this.
MIN_PAUSE_FOR_START_SECONDS: Final = 5.0

# So often a failed fetch is tried again by itself. Later tries wait for a demand: a source
# that is gone for good is not asked for ever.
TRIES_BY_ITSELF: Final = len(PAUSES_SECONDS)


class Demand(enum.Enum):
    """Who wants the content. It decides whether a rest is cut short."""

    RETRY = "another try"
    READER = "a read"
    START = "the start of a domain"
    HAND = "a person"


@dataclass(frozen=True, slots=True)
class Rest:
    """A failure, and what it means for the next demand. Times are of the caller's clock."""

    error: errors.DdfsError
    failures: int
    since: float

    @property
    def until(self) -> float:
        """When a reader's demand starts the next try."""
        return self.since + PAUSES_SECONDS[min(self.failures, len(PAUSES_SECONDS)) - 1]

    @property
    def is_tried_by_itself(self) -> bool:
        """Whether the next try needs no demand."""
        return not self.waits_for_a_hand and self.failures <= TRIES_BY_ITSELF

    @property
    def waits_for_a_hand(self) -> bool:
        """Whether only a person can do something: what is not signed stays so."""
        return isinstance(self.error, errors.SignatureError)

    def reason(self, now: float) -> errors.FetchRestingError:
        """What a demand is told that is not allowed."""
        seconds = max(0.0, self.until - now)
        when = f"in {seconds:.0f} s, or at once" if not self.waits_for_a_hand else "only"
        return errors.FetchRestingError(
            f"{self.error}; it is tried again {when} with ddfs prefetch"
        )

    def allows(self, now: float, demand: Demand) -> bool:
        """Whether a demand at *now* starts a fetch."""
        if demand is Demand.HAND:
            return True
        if self.waits_for_a_hand:
            return False
        if demand is Demand.START:
            return now >= min(self.since + MIN_PAUSE_FOR_START_SECONDS, self.until)
        return now >= self.until


def after_failure(previous: Rest | None, error: errors.DdfsError, now: float) -> Rest:
    """The rest that follows *error*, when *previous* was the one before it, if any."""
    return Rest(error, 1 + (previous.failures if previous else 0), now)
