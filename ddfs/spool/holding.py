"""What the spool knows of one content, and what it tells of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from ddfs import errors
from ddfs.fetch.transfer import MirrorStatistics, TransferStatistics
from ddfs.model import PublishedFile, SpoolReference, SpoolState
from ddfs.spool import rest
from ddfs.spool.fetching import Fetch
from ddfs.spool.ports import Storage


@dataclass(frozen=True, slots=True)
class HoldingStatus:
    """How far a content is on this host, at one moment.

    ``bytes_here`` are verified (without piece hashes: received) bytes. ``retry_in`` is in
    seconds, None unless the content rests after ``error``. ``mirrors`` are those of the
    running fetch, or of the last one since the daemon was started. ``primaries`` are the
    storages on which it is published, the one of ``published`` first. ``waits_for`` is the host
    that fetches it onto a shared storage, while the fetch here waits for that.
    """

    state: SpoolState
    bytes_here: int
    bytes_per_second: float
    seconds_left: float | None
    published: PublishedFile | None
    error: str | None
    error_kind: str | None
    retry_in: float | None
    mirrors: tuple[MirrorStatistics, ...]
    primaries: tuple[str, ...] = ()
    waits_for: str | None = None


class Copying:
    """A running copy onto another primary storage. ``error`` is there once it has failed."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.error: errors.DdfsError | None = None


class Withheld:
    """A published file that is not used here, since other hosts may delete it; *wanted* is told
    of a content that somebody wants to use all the same. ``ended`` is set when that is over.
    """

    def __init__(self, file: PublishedFile, wanted: Callable[[str], None]) -> None:
        self.file = file
        self.wanted = wanted
        self.ended = trio.Event()


class Holding:
    """Changed by the spool alone. *primaries* are all storages, in the order of preference;
    *home* is where it is fetched to.
    """

    def __init__(self, primaries: Sequence[str], home: Storage) -> None:
        self._primaries = primaries
        self.home = home
        # By primary storage, the preferred one first.
        self.files: dict[str, PublishedFile] = {}
        self.withheld: dict[str, Withheld] = {}
        self.copying: dict[str, Copying] = {}
        self.fetch: Fetch | None = None
        self.rest: rest.Rest | None = None
        self.bytes_here = 0
        self.was_fetching = False
        # While it is purged no reader may start a fetch into files that are being deleted.
        self.is_going = False
        # Set while it makes room: when that is over it may be fetched again.
        self.evicted: trio.Event | None = None
        # Somebody wants it, who cannot be told yet whether it has to be fetched.
        self.is_awaited = False
        # How many write into its files.
        self.repairs = 0
        # How often it was used since the daemon was started.
        self.uses = 0
        self.last_error: str | None = None
        self.mirrors: tuple[MirrorStatistics, ...] = ()

    @property
    def published(self) -> PublishedFile | None:
        """The file on the preferred storage, if there is one."""
        return next(iter(self.files.values()), None)

    @property
    def is_busy(self) -> bool:
        """Whether something is under way that deleting it would disturb."""
        return bool(self.fetch or self.is_going or self.copying or self.repairs)

    @property
    def obstacle(self) -> trio.Event | None:
        """Set once what keeps it from being fetched is over: an eviction, a copy, or that hosts
        agree on its end.
        """
        if self.evicted is not None:
            return self.evicted
        for withheld in self.withheld.values():
            return withheld.ended
        return next((each.ended for each in self.copying.values()), None)

    def put(self, primary: str, file: PublishedFile) -> None:
        """It is published on *primary*."""
        files = {**self.files, primary: file}
        self.files = {name: files[name] for name in self._primaries if name in files}

    def all_files(self) -> dict[str, PublishedFile]:
        """Those that are withheld too, by primary storage."""
        return {**self.files, **{name: each.file for name, each in self.withheld.items()}}

    def ask_for_withheld(self, content_id: str) -> None:
        """Somebody wants to use it."""
        for withheld in self.withheld.values():
            withheld.wanted(content_id)

    def drop(self, primary: str) -> None:
        """It is not published on *primary* any more."""
        self.files.pop(primary, None)
        withheld = self.withheld.pop(primary, None)
        if withheld is not None:
            withheld.ended.set()

    def restore(self, storage: Storage, reference: SpoolReference) -> None:
        """What a reference of an earlier daemon says; first come those of preferred storages."""
        if reference.published is not None:
            self.put(storage.name, reference.published)
        elif not self.files and not self.was_fetching:
            self.home = storage
            self.bytes_here = reference.bytes_here
            self.was_fetching = reference.state is SpoolState.FETCHING
            self.last_error = reference.last_error
        if self.files:
            self.was_fetching, self.last_error = False, None

    @property
    def state(self) -> SpoolState:
        """How far it is."""
        if self.published is not None:
            return SpoolState.PUBLISHED
        if self.fetch is not None or self.is_awaited:
            return SpoolState.FETCHING
        return SpoolState.FAILED if self.last_error is not None else SpoolState.ABSENT

    def status(self) -> HoldingStatus:
        """At this moment."""
        statistics = self.fetch.statistics() if self.fetch else None
        resting = self.rest
        return HoldingStatus(
            state=self.state,
            bytes_here=self._bytes_here(statistics),
            bytes_per_second=statistics.bytes_per_second if statistics else 0.0,
            seconds_left=statistics.seconds_left if statistics else None,
            published=self.published,
            error=self.last_error,
            error_kind=resting.error.kind() if resting and self.last_error else None,
            retry_in=(
                max(0.0, resting.until - trio.current_time())
                if resting and not self.fetch and not resting.waits_for_a_hand
                else None
            ),
            mirrors=statistics.mirrors if statistics else self.mirrors,
            primaries=tuple(self.files),
            waits_for=self.fetch.waits_for if self.fetch else None,
        )

    def _bytes_here(self, statistics: TransferStatistics | None) -> int:
        if self.published is not None:
            return self.published.size
        return statistics.bytes_verified if statistics else self.bytes_here


def at_rest(mirror: MirrorStatistics) -> MirrorStatistics:
    """A mirror when its fetch is over: nobody is busy any more."""
    state = "idle" if mirror.state == "busy" else mirror.state
    return replace(mirror, state=state, bytes_per_second=0.0)
