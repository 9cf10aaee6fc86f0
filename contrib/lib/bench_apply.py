"""contrib/bench apply: 1,000 templates from a file, on mirrors that take 20 ms to answer."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final

from lab.bootimage import SECTOR, boot_sector
from lab.host import Host
from lab.metalink import write_metalink

LATENCY_SECONDS: Final = 0.020
RATE_MIB: Final = 1000.0
IMAGE_BYTES: Final = 128 * 1024
BAR_SECONDS: Final = 30.0
AGAIN_BAR_SECONDS: Final = 5.0
LISTING_BAR_SECONDS: Final = 1.0


def run(directory: Path, arguments: Sequence[str]) -> bool:
    """Whether every bar was reached."""
    parser = argparse.ArgumentParser(prog="contrib/bench apply", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many templates")
    count = parser.parse_args(arguments).count
    root = directory / "www"
    root.mkdir()
    with _mirrors(root) as urls, Host(directory / "host") as host:
        file = _declared(root, urls, count, directory / "all.toml")
        host.serve()
        listing = _Listing(host)
        with listing:
            first = _seconds(host, file)
        again = _seconds(host, file)
        found = len(host.api_json("GET", "/v1/templates"))
    if found != count:
        raise OSError(f"{found} templates are registered, not {count}")
    return all(
        [
            _line(f"apply of {count} new templates", first, BAR_SECONDS),
            _line("the same again, nothing to do", again, AGAIN_BAR_SECONDS),
            _line("slowest listing of the mount meanwhile", listing.slowest, LISTING_BAR_SECONDS),
        ]
    )


def _line(what: str, seconds: float, bar: float) -> bool:
    reached = seconds <= bar
    print(f"{what:46} {seconds:8.2f} s   at most {bar:g} s   {'ok' if reached else 'MISSED'}")
    return reached


@contextmanager
def _mirrors(root: Path) -> Iterator[list[str]]:
    shaped = Path(__file__).with_name("shaped.py")
    mirrors = [
        {"address": f"127.0.0.{n}", "root": str(root), "rate": RATE_MIB, "latency": LATENCY_SECONDS}
        for n in (1, 2)
    ]
    command = [sys.executable, "-I", "-S", str(shaped), json.dumps(mirrors)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


def _declared(root: Path, urls: Sequence[str], count: int, file: Path) -> Path:
    """A metalink and an image for each, and the file that declares all of them."""
    tables = []
    for number in range(count):
        name = f"t{number:04}"
        image = root / f"{name}.img"
        image.write_bytes(boot_sector(name) + Random(number).randbytes(IMAGE_BYTES - SECTOR))
        write_metalink(root / f"{name}.meta4", image, [f"{url}/{image.name}" for url in urls])
        tables.append(f'[template.{name}]\nsource = "{urls[0]}/{name}.meta4"\nformat = "raw"\n')
    file.write_text("".join(tables))
    return file


def _seconds(host: Host, file: Path) -> float:
    began = time.monotonic()
    host.ddfs("template", "apply", file, seconds=600)
    return time.monotonic() - began


class _Listing:
    """Lists the mount again and again; how long the slowest took."""

    def __init__(self, host: Host) -> None:
        self.slowest = 0.0
        self._directory = host.templates
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.2):
            began = time.monotonic()
            # Another process, since a hanging mount must not take this one with it.
            subprocess.run(["ls", "-l", self._directory], check=False, capture_output=True)
            self.slowest = max(self.slowest, time.monotonic() - began)
