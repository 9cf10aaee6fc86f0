"""``ddfs fetch``: one verified download without a daemon, and what is seen of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from ddfs import config, errors
from ddfs.cli.destination import destination_of, refuse_taken
from ddfs.cli.fetch_request import FetchRequest
from ddfs.cli.resolving import judge_of, resolve, transport_of
from ddfs.fetch.events import FetchEvent, MirrorBlamed, MirrorFailed
from ddfs.fetch.statistics import MirrorStatistics, TransferReport, TransferStatistics

if TYPE_CHECKING:
    from ddfs.fetch.headstart import Headstart
    from ddfs.fetch.transfer import Transfer
    from ddfs.model import Digest, Manifest

# Until then no bar is shown: Rich takes 60 ms to import, which the first requests need, and
# what ends sooner needs none.
BAR_AFTER_SECONDS: Final = 0.3
BAR_EVERY_SECONDS: Final = 0.2

# How often programs get a progress event.
EVENT_EVERY_SECONDS: Final = 1.0


def fetch(request: FetchRequest, headstart: Headstart | None = None) -> None:
    """Runs *request*, which *headstart* has begun; returns when the file is there and verified.

    Progress goes to standard error, if that is a terminal; the outcome, or with ``as_json``
    one event per line, to standard output.
    """
    try:
        _check(request)
        trio.run(_fetch, request, headstart)
    finally:
        if headstart is not None:
            headstart.close()


def _check(request: FetchRequest) -> None:
    if request.output is not None:
        refuse_taken(Path(request.output))
    if request.seeds:
        from ddfs.spool.seed import check_seed

        for seed in request.seeds:
            check_seed(Path(seed))


async def _fetch(request: FetchRequest, headstart: Headstart | None) -> None:
    settings = config.load(request.config)
    location = settings.network.location
    limit = _limit(request.limit_rate, settings.network)
    async with transport_of(settings, headstart) as transport:
        transport.pacer.change(limit or None, None)
        transport.turns.change(settings.network.connections_per_host)
        manifest, grants = await resolve(transport, request.declaration(), settings)
        destination = destination_of(request.output, manifest.name)
        refuse_taken(destination)
        _warn(manifest)
        watch = _Watch(manifest, destination, as_json=request.as_json)

        async def run() -> TransferReport:
            from ddfs.spool.download import download

            return await download(
                manifest,
                destination,
                transport=transport,
                observer=watch.observe,
                started=watch.start,
                location=location,
                seeds=[Path(seed) for seed in request.seeds],
                grants=grants,
                pinned=watch.note_pinned,
                judge=judge_of(manifest, request.declaration(), settings),
            )

        watch.report(await watch.while_running(run))


def _warn(manifest: Manifest) -> None:
    """Say on standard error how little a weak hash proves."""
    is_weak = manifest.digest is not None and not manifest.digest.algorithm.is_strong
    if manifest.digest is not None and is_weak and manifest.signature is None:
        kind = manifest.digest.algorithm.value
        from ddfs.cli.output import warn

        warn(f"only {kind} to verify it by, which can be forged")


def _limit(option: str | None, network: config.NetworkSettings) -> int:
    """Bytes per second, 0 for no limit: the option, or else what the settings say for one."""
    if option is not None:
        return config.parse_bandwidth(option)
    given = [rate for rate in (network.bandwidth, network.bandwidth_per_fetch) if rate]
    return min(given, default=0)


class _Watch:
    """Shows one download: a bar or events while it runs, a report at its end."""

    def __init__(self, manifest: Manifest, destination: Path, *, as_json: bool) -> None:
        self._manifest = manifest
        self._destination = destination
        self._as_json = as_json
        self._transfer: Transfer | None = None
        self._blamed: dict[str, str] = {}
        self._pinned: Digest | None = None

    def note_pinned(self, digest: Digest) -> None:
        """What came, where nothing said what should."""
        self._pinned = digest

    def start(self, transfer: Transfer) -> None:
        """The transfer is about to send its first request."""
        self._transfer = transfer
        if self._as_json:
            self._emit(
                "started",
                name=self._manifest.name,
                size=self._manifest.size,
                content_id=self._manifest.content_id,
                destination=str(self._destination.absolute()),
                mirrors=[mirror.url for mirror in self._manifest.mirrors],
            )

    def observe(self, event: FetchEvent) -> None:
        """One event of the engine; remembers what the report has to explain."""
        if isinstance(event, MirrorBlamed):
            self._blamed[event.mirror_url] = event.reason
        if self._as_json:
            self._emit(_event_name(event), **_event_fields(event))

    async def while_running(self, run: Callable[[], Awaitable[TransferReport]]) -> TransferReport:
        """What *run* returns or raises; progress is shown meanwhile."""
        caught: errors.DdfsError | None = None
        report: TransferReport | None = None
        async with trio.open_nursery() as nursery:
            if self._as_json:
                nursery.start_soon(self._emit_progress)
            elif sys.stderr.isatty():
                nursery.start_soon(self._show_bar)
            try:
                report = await run()
            except errors.DdfsError as error:
                # Out of the nursery it goes as itself, not in a group.
                caught = error
            nursery.cancel_scope.cancel()
        if report is None:
            raise caught or RuntimeError("the download ended without a report")
        return report

    async def _emit_progress(self) -> None:
        while True:
            await trio.sleep(EVENT_EVERY_SECONDS)
            if self._transfer is not None:
                self._emit("progress", **_statistics_fields(self._transfer.statistics()))

    async def _show_bar(self) -> None:
        await trio.sleep(BAR_AFTER_SECONDS)
        from ddfs.cli.bars import bars

        with bars() as shown:
            task = shown.add(self._destination.name, self._manifest.size or 0)
            try:
                while True:
                    if self._transfer is not None:
                        shown.update(task, *_bar_figures(self._transfer.statistics()))
                    await trio.sleep(BAR_EVERY_SECONDS)
            finally:
                if self._transfer is not None:
                    shown.update(task, *_bar_figures(self._transfer.statistics()))

    def report(self, report: TransferReport) -> None:
        """Who served how much, and what was fetched again and why."""
        statistics = report.statistics
        if self._as_json:
            self._emit(
                "finished",
                destination=str(self._destination.absolute()),
                seconds=report.seconds,
                bytes_resumed=report.bytes_resumed,
                comparisons=report.comparisons,
                unverified=self._manifest.is_unpinned and self._manifest.signature is None,
                signed=self._manifest.signature is not None,
                pinned=None if self._pinned is None else str(self._pinned),
                **_statistics_fields(statistics),
            )
            return
        for line in report_lines(self._destination, self._manifest, report, self._blamed):
            print(line)
        if self._pinned is not None and self._manifest.signature is None:
            print(f"  It is {self._pinned}: next time say so with --checksum")

    def _emit(self, event: str, **fields: object) -> None:
        from ddfs.cli.output import print_json

        print_json({"event": event, "time": time.time(), **fields})


def report_lines(
    destination: Path, manifest: Manifest, report: TransferReport, blamed: dict[str, str]
) -> list[str]:
    """The report for people; *blamed* says by address what a mirror did wrong."""
    from ddfs.cli.text import format_seconds, format_size, one_line

    fetched = report.size - report.bytes_resumed
    speed = format_size(fetched / report.seconds) if report.seconds > 0 else "-"
    took = f"{report.seconds:.1f} s" if report.seconds < 10 else format_seconds(report.seconds)
    proof = manifest.digest.algorithm.value if manifest.digest else "its piece hashes"
    verified = "not verified by anything" if manifest.is_unpinned else f"verified by {proof}"
    if manifest.signature is not None:
        verified = "its signature is good" if manifest.is_unpinned else f"{verified}, and signed"
    size = format_size(report.size)
    name = one_line(str(destination))
    lines = [f"{name}: {size} in {took} ({speed}/s), {verified}"]
    if report.bytes_resumed:
        lines.append(f"  {format_size(report.bytes_resumed)} were here already")
    served = [m for m in report.statistics.mirrors if m.bytes_received or m.last_error]
    for mirror in sorted(served, key=lambda m: -m.bytes_received):
        text = "; ".join([mirror.url, *_complaint(mirror, blamed)])
        lines.append(f"  {format_size(mirror.bytes_received):>10}  {one_line(text)}")
    if report.statistics.refetched_bytes:
        lines.append(f"  {format_size(report.statistics.refetched_bytes)} were fetched twice")
    return lines


def _complaint(mirror: MirrorStatistics, blamed: dict[str, str]) -> list[str]:
    """What is to be said about a mirror, if anything: the gravest alone, they repeat each other."""
    if mirror.url in blamed:
        return [blamed[mirror.url]]
    if mirror.rejected_pieces:
        return [f"{mirror.rejected_pieces} of its pieces had wrong hashes"]
    return [mirror.last_error] if mirror.last_error else []


def _bar_figures(statistics: TransferStatistics) -> tuple[int, float, float | None, int]:
    busy = sum(mirror.state == "busy" for mirror in statistics.mirrors)
    rate, left = statistics.bytes_per_second, statistics.seconds_left
    return statistics.bytes_verified, rate, left, busy


def _statistics_fields(statistics: TransferStatistics) -> dict[str, object]:
    return {name: getattr(statistics, name) for name in statistics.__dataclass_fields__}


def _event_name(event: FetchEvent) -> str:
    name = type(event).__name__
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


def _event_fields(event: FetchEvent) -> dict[str, object]:
    fields = {name: getattr(event, name) for name in event.__dataclass_fields__}
    if isinstance(event, MirrorFailed):
        # The address is a field of its own.
        fields["error"] = event.error.message
    return fields
