"""Feeds a target inputs and watches it: what it raises, how long it takes, what it keeps."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import re
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import CORPUS, Target

# An input that computes longer is a hang in the making: the largest takes milliseconds. One
# that waits is given longer, since a busy machine lets everybody wait.
MAX_SECONDS: Final = 5.0
MAX_WAITING_SECONDS: Final = 60.0

# What is kept lies in the repository: enough for a start, little enough to look through.
MAX_KEPT: Final = 40
MAX_KEPT_BYTES: Final = 2048

# Inputs that showed something new are mutated again; the oldest of too many go.
# What is large is not mutated again: the growth that is looked for would be ours.
MAX_POOL: Final = 2000
MAX_POOLED_BYTES: Final = 4096


@dataclass
class Report:
    """What a run showed. ``growth_kib`` is the memory that its second half took and kept."""

    target: str
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    growth_kib: int = 0
    outcomes: int = 0
    failures: list[str] = field(default_factory=list)


def run(target: Target, inputs: int, seed: int, *, keep: bool = False) -> Report:
    """The corpus of *target*, then inputs made from it, *inputs* in all or the whole corpus.

    What fails is kept under ``corpus/`` and named in the report; with *keep* also what led
    to an outcome (a refusal's text, numbers aside) that was not seen before.
    """
    report = Report(target.name)
    pool = target.corpus()
    known: set[int] = set()
    mutator = Mutator(seed, target.tokens)
    began = time.monotonic()
    kept_at_half = kept = 0
    queue = list(pool)
    while report.inputs < inputs or queue:
        data = queue.pop() if queue else mutator.make(pool)
        outcome = _feed(target, data, report)
        if hash(outcome) not in known:
            known.add(hash(outcome))
            if len(data) <= MAX_POOLED_BYTES:
                pool.append(data)
                del pool[: max(0, len(pool) - MAX_POOL)]
            if keep and len(data) <= MAX_KEPT_BYTES and kept < MAX_KEPT:
                _keep(target, data, "seen")
                kept += 1
        if report.inputs == inputs // 2:
            kept_at_half = _resident_kib()
    report.growth_kib = _resident_kib() - kept_at_half if kept_at_half else 0
    report.seconds = time.monotonic() - began
    report.outcomes = len(known)
    return report


def _feed(target: Target, data: bytes, report: Report) -> str:
    """The outcome, in a word that is the same for the same kind of outcome."""
    report.inputs += 1
    started, computed = time.monotonic(), time.process_time()
    try:
        outcome = _kind(target.run(data))
    except target.refusals as error:
        report.refused += 1
        outcome = _kind(str(error))
        if "\n" in str(error):
            report.failures.append(f"more than one line: {str(error)!r} ({_keep(target, data)})")
    except Exception as error:
        report.failures.append(f"{type(error).__name__}: {error} ({_keep(target, data)})")
        outcome = f"bug {type(error).__name__}"
    seconds = time.monotonic() - started
    report.slowest_seconds = max(report.slowest_seconds, seconds)
    if seconds > MAX_WAITING_SECONDS or time.process_time() - computed > MAX_SECONDS:
        report.failures.append(f"{seconds:.1f} s ({_keep(target, data)})")
    return outcome


def _kind(text: str) -> str:
    return re.sub(r"[0-9a-f]{3,}|[0-9]+|'[^']*'|\"[^\"]*\"", "#", text)[:300]


def _keep(target: Target, data: bytes, why: str = "failed") -> str:
    directory = CORPUS / target.name
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{why}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    return path.name


def _resident_kib() -> int:
    # What was freed and not given back (malloc(3)) is no growth.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    # proc_pid_statm(5): pages, the second number is what is resident.
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024
