"""``contrib/fuzz``: the inputs of tests/fuzz by the million, in processes side by side."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from pathlib import Path

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[2]))

from tests.fuzz.campaign import Report, run
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Prints a line for each target, and what failed."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="contrib/fuzz", description=__doc__.partition(":")[2])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(names))
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all; %(default)s")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument(
        "--keep", action="store_true", help="keep inputs that showed something new in the corpus"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(names)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    chosen = arguments.targets or names
    tasks = [(name, arguments.inputs // len(chosen), arguments.seed, arguments.keep)
             for name in chosen]  # fmt: skip
    heads = ("TARGET", "INPUTS", "REFUSED", "OUTCOMES", "SECONDS", "SLOWEST", "GROWTH KiB")
    print("{:16}{:>9}{:>9}{:>10}{:>9}{:>9}{:>12}".format(*heads), flush=True)
    failures = []
    # A process for each: what one keeps in memory must not hide what another does.
    with multiprocessing.Pool(arguments.jobs, maxtasksperchild=1) as pool:
        for report in pool.imap_unordered(_run, tasks, chunksize=1):
            print(
                f"{report.target:16}{report.inputs:9}{report.refused:9}{report.outcomes:10}"
                f"{report.seconds:9.1f}{report.slowest_seconds:9.3f}{report.growth_kib:12}",
                flush=True,
            )
            failures += [f"{report.target}: {failure}" for failure in report.failures]
    print(*failures[:50], sep="\n")
    return 1 if failures else 0


def _run(task: tuple[str, int, int, bool]) -> Report:
    name, inputs, seed, keep = task
    target = next(target for target in TARGETS if target.name == name)
    return run(target, inputs, seed, keep=keep)


if __name__ == "__main__":
    sys.exit(main())
