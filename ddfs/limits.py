"""What fetches of this host may take, all together: shown, and changed while they run.

The limits themselves are kept where they act: bandwidth and connections in the transport,
the number of fetches in the spool's queue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ddfs import errors
from ddfs.config import (
    MAX_CONNECTIONS_PER_HOST,
    MAX_FETCHES_AT_ONCE,
    Settings,
    validate_bandwidth,
)
from ddfs.fetch.transport import Transport
from ddfs.spool.queue import Queue


@dataclass(frozen=True, slots=True)
class Limits:
    """Bandwidths in bytes per second, 0 for none. Raises :class:`errors.InvalidValueError`."""

    bandwidth: int
    bandwidth_per_fetch: int
    connections_per_host: int
    fetches_at_once: int

    def __post_init__(self) -> None:
        for bandwidth in (self.bandwidth, self.bandwidth_per_fetch):
            validate_bandwidth(bandwidth)
        _check("connections per host", self.connections_per_host, MAX_CONNECTIONS_PER_HOST)
        _check("fetches at once", self.fetches_at_once, MAX_FETCHES_AT_ONCE)

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """What the settings say."""
        network = settings.network
        return cls(
            network.bandwidth,
            network.bandwidth_per_fetch,
            network.connections_per_host,
            settings.fetch.at_once,
        )


def _check(what: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise errors.InvalidValueError(f"{what}: between 1 and {most}, not {value}")


def limit_transport(transport: Transport, limits: Limits) -> None:
    """Let all fetches that use *transport* keep to *limits*, from now on."""
    transport.pacer.change(limits.bandwidth or None, limits.bandwidth_per_fetch or None)
    transport.turns.change(limits.connections_per_host)


class HostLimits:
    """The limits of a running daemon. Used in its event loop."""

    def __init__(self, transport: Transport, queue: Queue, limits: Limits) -> None:
        self._transport = transport
        self._queue = queue
        self._now = limits
        self._apply()

    @property
    def now(self) -> Limits:
        """Those in force."""
        return self._now

    def change(self, **changes: int | None) -> Limits:
        """Change what is not None, all or nothing; running fetches keep to it at once.

        Raises :class:`errors.InvalidValueError`.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        self._now = replace(self._now, **given)
        self._apply()
        return self._now

    def _apply(self) -> None:
        limit_transport(self._transport, self._now)
        self._queue.change(self._now.fetches_at_once)
