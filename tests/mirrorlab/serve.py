"""Mirrors as a process: ``python -m tests.mirrorlab.serve FILE SPEC…``.

SPEC is ``key=value,…`` with the keys rate (MiB/s), latency (ms), fault, after (KiB), host,
name; an empty SPEC is ``-``. Prints one URL a line, in the order of the SPECs, then serves
until its standard input is closed, and prints one line ``URL requests bytes`` for each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from tests.mirrorlab.mirrorlab import KiB, MiB, MirrorLab


def start(lab: MirrorLab, file: Path, spec: str) -> str:
    """A mirror as *spec* says."""
    pairs = dict(item.split("=", 1) for item in spec.split(",") if "=" in item)
    unknown = set(pairs) - {"rate", "latency", "fault", "after", "host", "name"}
    if unknown:
        raise SystemExit(f"unknown in {spec!r}: {', '.join(sorted(unknown))}")
    return lab.mirror(
        file,
        name=pairs.get("name", file.name),
        rate=float(pairs["rate"]) * MiB if "rate" in pairs else None,
        latency=float(pairs.get("latency", 0)) / 1000,
        fault=pairs.get("fault"),
        after=int(pairs.get("after", 512)) * KiB,
        host=pairs.get("host"),
    )


async def main(file: Path, specs: list[str]) -> None:
    """Serve until standard input ends."""
    async with MirrorLab() as lab:
        urls = [start(lab, file, spec) for spec in specs]
        for url in urls:
            print(url, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        for url in urls:
            print(url, lab[url].requests, lab[url].bytes_sent, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    trio.run(main, Path(sys.argv[1]), sys.argv[2:])
