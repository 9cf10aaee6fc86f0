"""The programs that are measured, how each is called, and what one call took."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench_fetch_material import NAME
from lab.processes import LabError

HERE: Final = Path(__file__).resolve().parent
DDFS: Final = HERE.parents[1] / ".venv" / "bin" / "ddfs"
MEASURE: Final = HERE / "bench_fetch_measure.py"


@dataclass(frozen=True)
class Job:
    """What a client is asked for. ``urls`` are in the metalink's order, the best is the one
    for clients that take a single one; ``authority`` is the certificate to trust.
    """

    metalink: Path
    urls: tuple[str, ...]
    best: str
    output: Path
    authority: Path | None = None

    @property
    def target(self) -> Path:
        return self.output / NAME


@dataclass(frozen=True)
class Run:
    """What one call took. ``began`` is CLOCK_MONOTONIC."""

    began: float
    seconds: float
    cpu_seconds: float
    rss_bytes: int
    returncode: int
    is_stopped: bool
    log: str


def _ddfs(job: Job) -> list[str]:
    return [str(DDFS), "fetch", str(job.metalink), "-o", str(job.target)]


def _ddfs_json(job: Job) -> list[str]:
    return [*_ddfs(job), "--json"]


def _aria2c(*options: str) -> Callable[[Job], list[str]]:
    def command(job: Job) -> list[str]:
        trust = [f"--ca-certificate={job.authority}"] if job.authority else []
        fixed = ["-q", "--no-conf", "--file-allocation=none", "--allow-overwrite=true"]
        where = ["-d", str(job.output), "-M", str(job.metalink)]
        return ["aria2c", *fixed, *options, *trust, *where]

    return command


def _wget2(job: Job) -> list[str]:
    trust = [f"--ca-certificate={job.authority}"] if job.authority else []
    fixed = ["--no-config", "--no-hsts", "-q", "--force-metalink"]
    threads = f"--max-threads={len(job.urls)}"
    where = [f"--directory-prefix={job.output}", f"--input-file={job.metalink}"]
    return ["wget2", *fixed, threads, *trust, *where]


def _axel(job: Job) -> list[str]:
    return ["axel", "-q", "-n", str(len(job.urls)), "-o", str(job.target), *job.urls]


def _curl(job: Job) -> list[str]:
    trust = ["--cacert", str(job.authority)] if job.authority else []
    return ["curl", "-q", "-s", "-f", "-o", str(job.target), *trust, job.best]


CLIENTS: Final[dict[str, Callable[[Job], list[str]]]] = {
    "ddfs": _ddfs,
    # The same with its events as output, where a case looks at whom it blames.
    "ddfs --json": _ddfs_json,
    "aria2c": _aria2c(),
    "aria2c -k1M": _aria2c("-k1M"),
    "aria2c -k1M -s15": _aria2c("-k1M", "-s15"),
    "wget2": _wget2,
    "axel": _axel,
    "curl": _curl,
}


def programs(clients: Sequence[str]) -> set[str]:
    """The programs behind *clients* that are not installed."""
    words = {client.split()[0] for client in clients}
    return {word for word in words if word != "ddfs" and shutil.which(word) is None}


def version(client: str) -> str:
    """What the program says of itself; as a side effect its code is in the page cache."""
    word = client.split()[0]
    command = [str(DDFS) if word == "ddfs" else word, "--version"]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+\.\d[\w.]*", text)
    return f"{word} {found[0] if found else '?'}"


class Call:
    """One measured call, while it runs."""

    def __init__(self, client: str, job: Job, log: Path, limit: float) -> None:
        self._log = log
        environment = {
            name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
        }
        if job.authority is not None:
            environment["SSL_CERT_FILE"] = str(job.authority)
        command = CLIENTS[client](job)
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", MEASURE, str(limit), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                cwd=job.output,
                text=True,
            )
        self.pid: int = self._read()["pid"]

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"{MEASURE.name} ended\n{self._log.read_text(errors='replace')}")
        return json.loads(line)

    def result(self) -> Run:
        """Waits for its end."""
        fields = self._read()
        self._process.wait()
        return Run(**fields, log=self._log.read_text(errors="replace"))
