"""The lab itself: that a mirror without a fault has none, and that it runs as a process."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import trio

from tests.mirrorlab.mirrorlab import KiB, MiB, MirrorLab

ROOT = Path(__file__).parents[2]


def _get(url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers)) as response:
        return response.status, response.read()


async def test_a_mirror_without_a_fault_serves_ranges_and_counts():
    content = bytes(range(256)) * 64
    async with MirrorLab() as lab:
        url = lab.mirror(content)
        whole = await trio.to_thread.run_sync(_get, url, {})
        part = await trio.to_thread.run_sync(_get, url, {"Range": "bytes=10-19"})
        assert whole == (200, content)
        assert part == (206, content[10:20])
        assert lab[url].requests == 2
        assert lab[url].bytes_sent == len(content) + 10
        assert lab[url].ranges == [(0, len(content) - 1), (10, 19)]


async def test_a_rate_is_the_servers_and_not_the_connections():
    content = bytes(512 * KiB)
    async with MirrorLab() as lab:
        url = lab.mirror(content, rate=1 * MiB)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(trio.to_thread.run_sync, _get, url, {})
        assert trio.current_time() - begun > 0.8


async def test_an_unknown_fault_is_refused():
    async with MirrorLab() as lab:
        with pytest.raises(ValueError, match="no such fault"):
            lab.mirror(b"", fault="nonsense")


def test_it_runs_as_a_process(tmp_path):
    file = tmp_path / "image.img"
    file.write_bytes(b"x" * 1000)
    command = [sys.executable, "-m", "tests.mirrorlab.serve", str(file), "-", "fault=404"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        good, bad = (process.stdout.readline().strip() for _ in range(2))
        assert _get(good, {}) == (200, b"x" * 1000)
        process.stdin.close()
        lines = process.stdout.read().splitlines()
    assert lines == [f"{good} 1 1000", f"{bad} 0 0"]
