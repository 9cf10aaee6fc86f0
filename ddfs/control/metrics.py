"""What operators scrape: ``GET /metrics`` in Prometheus' text format."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ddfs import errors
from ddfs.model import SpoolState
from ddfs.templates import Templates
from ddfs.versions import SourceState, Verdict


class MountFigures(Protocol):
    """What the mount counts."""

    @property
    def requests(self) -> Mapping[str, int]:
        """The kernel's requests, by kind."""

    @property
    def crashes(self) -> Mapping[str, int]:
        """Those that ended in a bug."""

    @property
    def readers_waiting(self) -> int:
        """Reads that wait for their bytes."""

    @property
    def degraded(self) -> Sequence[str]:
        """What keeps it from its full speed."""


class PrimaryFigures(Protocol):
    """A primary storage, as far as it is measured."""

    @property
    def name(self) -> str:
        """What the settings call it."""

    def figures(self) -> tuple[int, int]:
        """Total and free bytes."""


class HostMetrics:
    """The metrics of one host, counted when they are asked for."""

    def __init__(
        self,
        templates: Templates,
        mount: MountFigures,
        primaries: Sequence[PrimaryFigures],
        source_state: Callable[[str], SourceState] = lambda _: SourceState(),
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_HostCollector(templates, mount, primaries))
        self._registry.register(_SourceCollector(templates, source_state))

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self._registry)


class _HostCollector(Collector):
    def __init__(
        self,
        templates: Templates,
        mount: MountFigures,
        primaries: Sequence[PrimaryFigures],
    ) -> None:
        self._templates = templates
        self._mount = mount
        self._primaries = primaries

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are known once collected, and collecting needs a started host."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families."""
        yield from self._template_families()
        yield from self._mirror_families()
        yield from self._mount_families()
        yield from self._primary_families()

    def _primary_families(self) -> Iterator[Metric]:
        size = GaugeMetricFamily(
            "ddfs_primary_bytes", "Size of primary storage", labels=["primary"]
        )
        room = GaugeMetricFamily(
            "ddfs_primary_free_bytes", "Room in primary storage", labels=["primary"]
        )
        for primary in self._primaries:
            # One that does not answer takes no figure away from the others.
            with contextlib.suppress(errors.DdfsError):
                total, free = primary.figures()
                size.add_metric([primary.name], total)
                room.add_metric([primary.name], free)
        yield size
        yield room

    def _template_families(self) -> Iterator[Metric]:
        templates = self._templates.all()
        states = [self._templates.holding(template).state for template in templates]
        counts = GaugeMetricFamily("ddfs_templates", "Templates by state", labels=["state"])
        for state in SpoolState:
            counts.add_metric([state.value], states.count(state))
        yield counts
        here = GaugeMetricFamily("ddfs_template_here_bytes", "Bytes here", labels=["template"])
        size = GaugeMetricFamily("ddfs_template_size_bytes", "Size", labels=["template"])
        for template in templates:
            here.add_metric([template.name], self._templates.holding(template).bytes_here)
            size.add_metric([template.name], template.size)
        yield here
        yield size

    def _mount_families(self) -> Iterator[Metric]:
        mount = self._mount
        yield _by_kind("ddfs_fuse_requests", "Requests of the kernel", mount.requests)
        yield _by_kind("ddfs_fuse_crashes", "Requests that ended in a bug", mount.crashes)
        yield GaugeMetricFamily(
            "ddfs_fuse_readers_waiting", "Reads that wait for bytes", value=mount.readers_waiting
        )
        yield GaugeMetricFamily(
            "ddfs_fuse_degraded", "Limits that could not be raised", value=len(mount.degraded)
        )

    def _mirror_families(self) -> Iterator[Metric]:
        received = CounterMetricFamily(
            "ddfs_mirror_received_bytes",
            "Bytes that a mirror sent in the running or last fetch",
            labels=["template", "mirror"],
        )
        rejected = CounterMetricFamily(
            "ddfs_mirror_rejected_pieces",
            "Pieces of a mirror whose hash was wrong, in the running or last fetch",
            labels=["template", "mirror"],
        )
        for template in self._templates.all():
            for mirror in self._templates.holding(template).mirrors:
                labels = [template.name, mirror.url]
                received.add_metric(labels, mirror.bytes_received)
                rejected.add_metric(labels, mirror.rejected_pieces)
        yield received
        yield rejected


class _SourceCollector(Collector):
    def __init__(self, templates: Templates, source_state: Callable[[str], SourceState]) -> None:
        self._templates = templates
        self._state = source_state

    def describe(self) -> Iterable[Metric]:
        """Nothing, as above."""
        return []

    def collect(self) -> Iterator[Metric]:
        """How the last checks of sources ended; none for a source that was never checked."""
        changed = GaugeMetricFamily(
            "ddfs_source_changed", "Whether there is a newer version", labels=["template"]
        )
        reached = GaugeMetricFamily(
            "ddfs_source_reachable", "Whether its source answered last", labels=["template"]
        )
        when = GaugeMetricFamily(
            "ddfs_source_checked_seconds", "When that was", labels=["template"]
        )
        for family in self._templates.families():
            state = self._state(family)
            if state.verdict is not None and state.checked_at is not None:
                changed.add_metric([family], state.verdict is Verdict.CHANGED)
                reached.add_metric([family], state.verdict is not Verdict.UNREACHABLE)
                when.add_metric([family], state.checked_at)
        yield from (changed, reached, when)


def _by_kind(name: str, text: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["kind"])
    for kind, count in sorted(counts.items()):
        family.add_metric([kind], count)
    return family
