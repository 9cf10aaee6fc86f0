"""One client on one set of mirrors: called, measured, and its file looked at."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench_fetch_clients import Call, Job, Run, version
from bench_fetch_material import GIB, Material, is_right
from bench_fetch_servers import Mirrors

# How a call ended.
RIGHT: Final = "right"
REFUSED: Final = "refused"
STOPPED: Final = "stopped"
WRONG: Final = "WRONG FILE"
LEFT: Final = "refused, but left it under its name"


@dataclass(frozen=True)
class Measured:
    """One call. ``first_request`` is in seconds from the command, where the mirrors say so."""

    run: Run
    outcome: str
    size: int
    requests: int
    bytes_sent: int
    first_request: float | None

    @property
    def bytes_brought(self) -> int:
        """Of a stopped call as much as was sent, else the whole file."""
        return self.bytes_sent if self.outcome == STOPPED else self.size

    @property
    def accused(self) -> set[str]:
        """The mirrors whose bytes ``ddfs fetch --json`` said it refused."""
        events = []
        for line in self.run.log.splitlines():
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
        kinds = {"mirror-blamed", "piece-rejected"}
        return {
            event["mirror_url"]
            for event in events
            if isinstance(event, dict) and event.get("event") in kinds
        }


@dataclass(frozen=True)
class Figures:
    """All calls of one client in one case.

    Time and CPU are the least of all calls, because other programs on the host only add to
    them; memory and requests are the most, and every call has to end well.
    """

    calls: tuple[Measured, ...]

    @property
    def seconds(self) -> float:
        return min(call.run.seconds for call in self.calls)

    @property
    def most_seconds(self) -> float:
        return max(call.run.seconds for call in self.calls)

    @property
    def cpu_per_gib(self) -> float:
        return min(c.run.cpu_seconds * GIB / max(c.bytes_brought, 1) for c in self.calls)

    @property
    def rss_bytes(self) -> int:
        return max(call.run.rss_bytes for call in self.calls)

    @property
    def requests(self) -> int:
        return max(call.requests for call in self.calls)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return max(call.bytes_brought / call.run.seconds for call in self.calls)

    @property
    def outcome(self) -> str:
        return ", ".join(sorted({call.outcome for call in self.calls}))


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    peers: tuple[str, ...] | None
    repeat: int

    def clients(self, ours: str, peers: Sequence[str]) -> list[str]:
        """Those of a case that are wanted, ours first."""
        wanted = self.peers
        return [ours, *(peer for peer in peers if wanted is None or peer in wanted)]


def measure(client: str, job: Job, mirrors: Mirrors, material: Material, limit: float) -> Measured:
    """One call, in an empty directory that is removed afterwards."""
    with empty(job.output):
        mirrors.reset()
        run = Call(client, job, _log(job), limit).result()
        return examined(run, job, mirrors, material)


def examined(run: Run, job: Job, mirrors: Mirrors, material: Material) -> Measured:
    """*run* with what its mirrors counted and what it left behind."""
    counts = mirrors.counts()
    firsts = [c.first_request_at for c in counts if c.first_request_at is not None]
    return Measured(
        run,
        _outcome(run, job, material),
        material.size,
        sum(count.requests for count in counts),
        sum(count.bytes_sent for count in counts),
        min(firsts) - run.began if firsts else None,
    )


def _outcome(run: Run, job: Job, material: Material) -> str:
    if run.is_stopped:
        return STOPPED
    if run.returncode != 0:
        return LEFT if job.target.exists() and not _is_partial(job) else REFUSED
    return RIGHT if is_right(job.target, material) else WRONG


def _is_partial(job: Job) -> bool:
    """aria2 and axel mark a file that is not complete by a second one beside it."""
    return any(Path(f"{job.target}{suffix}").exists() for suffix in (".aria2", ".st"))


def begin(client: str, job: Job, limit: float) -> Call:
    """A call in a directory that stays as it is."""
    return Call(client, job, _log(job), limit)


def _log(job: Job) -> Path:
    return job.output.with_suffix(".log")


@contextlib.contextmanager
def empty(directory: Path) -> Iterator[None]:
    directory.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(directory)


def touch_memory(directory: Path, material: Material) -> None:
    """Has the machine give this host the memory that outputs will need.

    In a virtual machine, memory that was never used comes from outside when it is first
    written, at 600 MiB/s where this was measured, and a balloon takes back within seconds what
    is free: so before each call, or who comes later pays more or less than who came first.
    """
    with empty(directory):
        shutil.copyfile(material.path, directory / material.path.name)


def in_turns(
    clients: Sequence[str], repeat: int, call: Callable[[str], Measured]
) -> dict[str, Figures]:
    """Each of *clients* *repeat* times, each round beginning with another one."""
    for client in clients:
        version(client)
    calls: dict[str, list[Measured]] = {client: [] for client in clients}
    for number in range(repeat):
        first = number % len(clients)
        for client in (*clients[first:], *clients[:first]):
            calls[client].append(call(client))
    return {client: Figures(tuple(made)) for client, made in calls.items()}
