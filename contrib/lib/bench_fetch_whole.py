"""The cases that are not a race: its start, a million small pieces, and ``kill -9``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from bench_fetch_clients import Job
from bench_fetch_material import GIB, KIB, MIB, Material, make, make_zeros, metalink
from bench_fetch_report import Row, at_most, holds, memory
from bench_fetch_run import (
    RIGHT,
    STOPPED,
    Measured,
    Options,
    begin,
    empty,
    examined,
    in_turns,
    measure,
)
from bench_fetch_servers import shaped
from shaped import Mirror

START_BYTES: Final = 1 * MIB
# Rounds, in any case: one is a few tenths of a second.
START_ROUNDS: Final = 5
MAX_START_SECONDS: Final = 0.2

MANY_BYTES: Final = 100 * GIB
MANY_PIECE: Final = 256 * KIB
# What arrives until it is stopped stays in memory: 4 GiB and a half at most.
MANY_RATE: Final = 75.0
MANY_SECONDS: Final = 15.0

KILL_RATES: Final = (40.0, 20.0, 10.0, 2.0)
POLL_SECONDS: Final = 0.02
KILL_LIMIT_SECONDS: Final = 60.0


def _mirrors(root: Path, *rates: float) -> list[Mirror]:
    return [
        Mirror(f"127.0.1.{number}", str(root), rate, 0.010)
        for number, rate in enumerate(rates, start=1)
    ]


def start(directory: Path, options: Options) -> Row:
    """From the command to its first request."""
    material = make(directory / "start", START_BYTES, MIB)
    with shaped(_mirrors(material.root, 100.0)) as farm:
        document = metalink(
            directory / "start.meta4", material, [(farm.urls[0], 1)], has_pieces=True
        )
        url = f"{farm.urls[0]}/{material.path.name}"
        job = Job(document, (url,), url, directory / "out")
        figures = in_turns(
            options.clients("ddfs", ["aria2c", "wget2", "axel", "curl"]),
            max(options.repeat, START_ROUNDS),
            lambda client: measure(client, job, farm, material, 30.0),
        )
    ours = figures["ddfs"]
    firsts = [call.first_request for call in ours.calls if call.first_request is not None]
    seconds = min(firsts, default=float("inf"))
    bars = (
        at_most("seconds from the command to the first request", seconds, MAX_START_SECONDS, " s"),
        holds("file right", ours.outcome, ours.outcome == RIGHT),
    )
    title = f"a file of {START_BYTES // MIB} MiB; seconds are of the whole command"
    return Row("start", title, figures, bars)


def memory_of_many(directory: Path, options: Options) -> Row:
    """Peak memory with a 100 GiB file of 256 KiB pieces, fetched for a while."""
    material = make_zeros(directory / "many", MANY_BYTES, MANY_PIECE)
    with shaped(_mirrors(material.root, *[MANY_RATE] * 4)) as farm:
        document = metalink(
            directory / "many.meta4", material, [(url, 1) for url in farm.urls], has_pieces=True
        )
        files = tuple(f"{url}/{material.path.name}" for url in farm.urls)
        job = Job(document, files, files[0], directory / "out")
        figures = in_turns(
            options.clients("ddfs", ["aria2c"]),
            options.repeat,
            lambda client: measure(client, job, farm, material, MANY_SECONDS),
        )
    ours = figures["ddfs"]
    fetched = min(call.bytes_sent for call in ours.calls)
    bars = (
        memory(ours),
        holds("came so far", f"{fetched / MIB:.0f} MiB", fetched > GIB),
        holds("was stopped", ours.outcome, ours.outcome == STOPPED),
    )
    title = (
        f"100 GiB of 256 KiB pieces at {4 * MANY_RATE:.0f} MiB/s, "
        f"stopped after {MANY_SECONDS:.0f} s: only its memory counts"
    )
    return Row("memory", title, figures, bars)


def kill(directory: Path, material: Material, options: Options) -> Row:
    """``kill -9`` at half, then the same command again: what is sent twice."""
    with shaped(_mirrors(material.root, *KILL_RATES)) as farm:
        document = metalink(
            directory / "kill.meta4", material, [(url, 1) for url in farm.urls], has_pieces=True
        )
        files = tuple(f"{url}/{material.path.name}" for url in farm.urls)
        job = Job(document, files, files[0], directory / "out")

        def call(client: str) -> Measured:
            farm.reset()
            with empty(job.output):
                first = begin(client, job, KILL_LIMIT_SECONDS)
                while sum(count.bytes_sent for count in farm.counts()) < material.size / 2:
                    time.sleep(POLL_SECONDS)
                os.kill(first.pid, signal.SIGKILL)
                first.result()
                second = begin(client, job, KILL_LIMIT_SECONDS).result()
                return examined(second, job, farm, material)

        figures = in_turns(
            options.clients("ddfs", ["aria2c", "wget2", "axel"]),
            options.repeat,
            call,
        )
    ours = figures["ddfs"]
    again = max(call.bytes_sent for call in ours.calls) - material.size
    others = ", ".join(
        f"{client} {(max(c.bytes_sent for c in made.calls) - material.size) / MIB:.0f}"
        for client, made in figures.items()
        if client != "ddfs"
    )
    allowed = len(KILL_RATES) * material.piece_length / MIB
    bars = (
        at_most("MiB sent again", again / MIB, allowed, digits=1),
        holds("file right", ours.outcome, ours.outcome == RIGHT),
    )
    title = f"kill -9 at half of 512 MiB, 40/20/10/2 MiB/s; the second call; MiB again: {others}"
    return Row("kill", title, figures, bars)
