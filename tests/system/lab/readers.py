"""A program: many readers of one file, in a process of their own, so that whoever waits for a
file system is never the one who runs the test.

``python readers.py COUNT OFFSET LENGTH PATH`` opens PATH and reads LENGTH bytes (0: to the end)
from OFFSET, COUNT times at once. It prints ``started`` when all have begun, and at the end one
JSON list with ``[errno, seconds, bytes, sha256]`` of each, errno 0 for success.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

CHUNK = 1024 * 1024


class Readers:
    """The program under the hand of a test: started at once, :meth:`results` waits."""

    def __init__(self, path: Path, *, count: int = 1, offset: int = 0, length: int = 0) -> None:
        words = [str(count), str(offset), str(length), str(path)]
        self.process = subprocess.Popen(
            [sys.executable, "-S", __file__, *words], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout
        assert self._output.readline() == "started\n"

    def is_waiting(self) -> bool:
        return self.process.poll() is None

    def results(self, seconds: float = 90.0) -> list[Result]:
        """What each reader got."""
        # Not communicate(): the answer of a quick reader is in our buffer already.
        with self.process:
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
            return [Result(*row) for row in json.loads(self._output.read())]

    def kill(self) -> None:
        """At once; returns when it is gone, which takes until its requests are answered."""
        with self.process:
            self.process.kill()


class Result:
    """One reader's: errno (0: none), seconds, bytes and their SHA-256."""

    def __init__(self, errno: int, seconds: float, size: int, sha256: str) -> None:
        self.errno = errno
        self.seconds = seconds
        self.size = size
        self.sha256 = sha256

    def __repr__(self) -> str:
        return f"Result({self.errno}, {self.seconds:.2f} s, {self.size}, {self.sha256[:8]})"


def _read(path: str, offset: int, length: int) -> tuple[int, float, int, str]:
    began, total, digest = time.monotonic(), 0, hashlib.sha256()
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            while not length or total < length:
                wanted = min(CHUNK, length - total) if length else CHUNK
                data = os.pread(fd, wanted, offset + total)
                if not data:
                    break
                digest.update(data)
                total += len(data)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno or -1, time.monotonic() - began, total, digest.hexdigest()
    return 0, time.monotonic() - began, total, digest.hexdigest()


def main(count: int, offset: int, length: int, path: str) -> None:
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        results[number] = _read(path, offset, length)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    print("started", flush=True)
    for thread in threads:
        thread.join()
    print(json.dumps(results))


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:4]), sys.argv[4])
