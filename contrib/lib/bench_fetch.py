"""contrib/bench fetch: how near `ddfs fetch` comes to what its mirrors could deliver.

Everything is in a tmpfs of its own and on loopback. A client begins with an empty directory,
mirrors that have forgotten the one before, its own code and the file to fetch in the page
cache, and no proxy in its environment; what it made is checked by hash when the clock stands
still. Of several rounds the least time and CPU count, and the most memory and requests.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Final

import bench_fetch_unshaped
import bench_fetch_whole
from bench_fetch_cases import CASES, LIES, PIECE, SIZE, Case
from bench_fetch_clients import CLIENTS, Job, programs, version
from bench_fetch_material import Material, make, make_lies, metalink
from bench_fetch_report import Bar, Row, at_most, holds, markdown, memory, requests, show
from bench_fetch_run import REFUSED, RIGHT, Figures, Options, in_turns, measure
from bench_fetch_servers import shaped
from lab.processes import LabError

# Nothing that is written here is that large; it is what programs see as free room when they
# ask whether a file of 100 GiB would fit.
TMPFS_SIZE: Final = "160g"

# A client that needs so many times the ideal is stopped.
PATIENCE: Final = 8.0


class Bench:
    """The cases, with the files that several of them share."""

    def __init__(self, directory: Path, options: Options) -> None:
        self.directory = directory
        self.options = options

    @cached_property
    def truth(self) -> Material:
        return make(self.directory / "truth", SIZE, PIECE)

    def root(self, name: str) -> str:
        """The directory that a mirror serves: the truth, or the lies of that name."""
        if not name:
            return str(self.truth.root)
        root = self.directory / name
        return str(root if root.is_dir() else make_lies(root, self.truth, LIES[name]))

    @cached_property
    def large(self) -> Material:
        return make(self.directory / "large", bench_fetch_unshaped.SIZE, PIECE)

    def shaped(self, case: Case) -> Row:
        """One of the declared cases."""
        mirrors = [replace(mirror, root=self.root(mirror.root)) for mirror in case.mirrors]
        ours = "ddfs --json" if case.has_liar else "ddfs"
        clients = self.options.clients(ours, case.peers)
        with shaped(mirrors) as farm:
            priorities = case.priorities or [1] * len(farm.urls)
            document = metalink(
                self.directory / f"{case.name}.meta4",
                self.truth,
                list(zip(farm.urls, priorities, strict=True)),
                has_pieces=case.has_pieces,
                is_whole_wrong=case.refused,
            )
            files = tuple(f"{url}/{self.truth.path.name}" for url in farm.urls)
            job = Job(document, files, files[case.best], self.directory / "out")
            limit = PATIENCE * case.ideal
            figures = in_turns(
                clients,
                self.options.repeat,
                lambda client: measure(client, job, farm, self.truth, limit),
            )
            bars = _bars(case, figures[ours], farm.urls)
        return Row(case.name, case.title, figures, bars, case.ideal)


def _bars(case: Case, ours: Figures, urls: Sequence[str]) -> tuple[Bar, ...]:
    general = (memory(ours), requests(ours))
    if case.refused:
        refused = ours.outcome == REFUSED
        return (holds("refused, nothing under the final name", ours.outcome, refused), *general)
    bars = [
        at_most("time over ideal", ours.seconds / case.ideal, case.bar, digits=3),
        holds("file right", ours.outcome, ours.outcome == RIGHT),
    ]
    if case.has_liar:
        liar = urls[case.bad_at]
        accused = [
            {name.removesuffix(f"/{Path(name).name}") for name in call.accused}
            for call in ours.calls
        ]
        text = "; ".join(
            ", ".join("the liar" if url == liar else url for url in sorted(names)) or "nobody"
            for names in accused
        )
        bars.append(holds("the right one blamed", text, all(a == {liar} for a in accused)))
    return (*bars, *general)


def _cases(bench: Bench) -> dict[str, Callable[[], Row]]:
    cases: dict[str, Callable[[], Row]] = {}
    for case in CASES:
        cases[case.name] = lambda case=case: bench.shaped(case)  # type: ignore[misc]
    for name in bench_fetch_unshaped.CASES:
        cases[name] = lambda name=name: bench_fetch_unshaped.run(  # type: ignore[misc]
            name, bench.directory, bench.large, bench.options
        )
    small = bench.directory
    cases["start"] = lambda: bench_fetch_whole.start(small, bench.options)
    cases["memory"] = lambda: bench_fetch_whole.memory_of_many(small, bench.options)
    cases["kill"] = lambda: bench_fetch_whole.kill(small, bench.truth, bench.options)
    return cases


def run(directory: Path, arguments: Sequence[str]) -> bool:
    """Whether every bar of the cases that were asked for was reached."""
    memory_root = directory / "memory"
    options = ["-n", "-t", "tmpfs", "-o", f"size={TMPFS_SIZE},mode=0755", "tmpfs"]
    wanted = _parse(arguments, list(_cases(Bench(memory_root, Options(None, 1)))))
    peers = wanted.peers.split(",") if wanted.peers is not None else list(CLIENTS)
    if missing := programs([peer for peer in peers if peer and peer != "none"]):
        raise LabError(f"not installed: {', '.join(sorted(missing))}")
    memory_root.mkdir()
    subprocess.run(["mount", *options, memory_root], check=True)
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "-n", "-l", memory_root], check=True)
        return _run(Bench(memory_root, Options(tuple(peers), wanted.repeat)), wanted)


def _run(bench: Bench, wanted: argparse.Namespace) -> bool:
    cases = _cases(bench)
    seen = dict.fromkeys(version(client) for client in CLIENTS)
    print(f"{', '.join(seen)}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    rows = []
    for name in wanted.case or cases:
        row = cases[name]()
        show(row)
        rows.append(row)
    if wanted.markdown:
        print(f"\n{markdown(rows)}")
    missed = [row.name for row in rows if not row.is_reached]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} cases reach their bars", end="")
    print(f"; missed: {', '.join(missed)}" if missed else "")
    return not missed


def _parse(arguments: Sequence[str], names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="contrib/bench fetch",
        description="Measures ddfs fetch and its peers on shaped and unshaped loopback mirrors.",
        epilog=f"cases: {', '.join(names)}",
    )
    parser.add_argument("case", nargs="*", metavar="CASE", help="all of them by default")
    peers = ", ".join(f'"{name}"' for name in CLIENTS if not name.startswith("ddfs"))
    parser.add_argument("--peers", help=f"separated by commas, or none; of: {peers}")
    parser.add_argument("--repeat", type=int, default=1, help="rounds, each in another order")
    parser.add_argument("--markdown", action="store_true", help="a table at the end")
    wanted = parser.parse_args(arguments)
    if unknown := set(wanted.case) - set(names):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    known = {*CLIENTS, "none"}
    if unknown := set((wanted.peers or "none").split(",")) - known:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    if wanted.repeat < 1:
        parser.error("--repeat: at least 1")
    return wanted
