"""As fast as the machine can: 4 GiB from four nginx processes, memory to memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench_fetch_clients import Job
from bench_fetch_material import GIB, Material, metalink
from bench_fetch_report import Bar, Row, at_least, at_most, holds, memory
from bench_fetch_run import RIGHT, Figures, Measured, Options, in_turns, measure, touch_memory
from bench_fetch_servers import make_certificate, nginx

SIZE: Final = 4 * GIB
MIRRORS: Final = 4

# A client that needs longer is stopped.
LIMIT_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Unshaped:
    """The bars: speed over the faster aria2c, CPU over the thriftier, speed over curl."""

    title: str
    has_pieces: bool
    over_aria2: float
    cpu_of_aria2: float | None = None
    over_curl: float | None = None
    has_tls: bool = False


# wget2 is not asked: it keeps what it receives in memory, twice.
PEERS: Final = ("aria2c", "aria2c -k1M", "axel", "curl")

CASES: Final = {
    "plain": Unshaped("4 GiB unshaped, whole SHA-256", False, 1.7, 0.8, 0.75),
    "plain-pieces": Unshaped("4 GiB unshaped, whole and pieces", True, 1.5, 1.1, 0.65),
    "tls": Unshaped("4 GiB over TLS, whole SHA-256", False, 1.4, has_tls=True),
    "tls-pieces": Unshaped("4 GiB over TLS, whole and pieces", True, 1.2, has_tls=True),
}


def run(name: str, directory: Path, material: Material, options: Options) -> Row:
    """One of the cases."""
    case = CASES[name]
    peers = [peer for peer in PEERS if not (case.has_tls and peer == "axel")]
    with contextlib.ExitStack() as stack:
        server, signer = None, None
        if case.has_tls:
            server, signer = make_certificate(directory / f"{name}-certificate", MIRRORS)
        farm = stack.enter_context(nginx(directory / name, material.root, MIRRORS, server))
        document = metalink(
            directory / f"{name}.meta4",
            material,
            [(url, 1) for url in farm.urls],
            has_pieces=case.has_pieces,
        )
        files = tuple(f"{url}/{material.path.name}" for url in farm.urls)
        job = Job(document, files, files[0], directory / "out", signer)

        def call(client: str) -> Measured:
            touch_memory(job.output, material)
            return measure(client, job, farm, material, LIMIT_SECONDS)

        figures = in_turns(options.clients("ddfs", peers), options.repeat, call)
    return Row(name, case.title, figures, _bars(case, figures))


def _bars(case: Unshaped, figures: dict[str, Figures]) -> tuple[Bar, ...]:
    ours = figures["ddfs"]
    bars = [holds("file right", ours.outcome, ours.outcome == RIGHT), memory(ours)]
    aria2 = [f for name, f in figures.items() if name.startswith("aria2c") and f.outcome == RIGHT]
    if aria2:
        best = max(f.rate for f in aria2)
        bars.append(at_least("speed over aria2c", ours.rate / best, case.over_aria2))
        if case.cpu_of_aria2 is not None:
            cpu = min(f.cpu_per_gib for f in aria2)
            bars.append(at_most("CPU over aria2c", ours.cpu_per_gib / cpu, case.cpu_of_aria2))
    curl = figures.get("curl")
    if curl is not None and case.over_curl is not None:
        bars.append(at_least("speed over curl", ours.rate / curl.rate, case.over_curl))
    return tuple(bars)
