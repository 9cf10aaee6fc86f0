from __future__ import annotations

import os

import pytest
from fetch_target import file_target, random_bytes

from ddfs import errors
from ddfs.fetch.aside import Aside
from ddfs.model import Grid, MiB

PIECE = 2 * MiB
GRID = Grid(2 * PIECE + 4321, PIECE)
OLD = random_bytes(GRID.size, seed=1)


async def test_what_is_kept_comes_back_where_it_was(tmp_path):
    with file_target(tmp_path / "partial") as target:
        os.pwrite(target.fd, OLD, 0)
        aside = Aside(target, GRID)
        assert target.opened_aside == 0
        await aside.keep({2: b"two", 1: b"one"})
        assert aside.has(1, b"one")
        assert not aside.has(1, b"other")
        assert not aside.has(0, b"one")
        os.pwrite(target.fd, bytes(GRID.size), 0)
        await aside.keep({1: b"zeros"})
        await aside.put_back({1: b"one", 2: b"two"})
        assert target.content() == bytes(PIECE) + OLD[PIECE:]
        await aside.put_back({1: b"zeros"})
        assert target.content() == bytes(2 * PIECE) + OLD[2 * PIECE :]
        assert target.opened_aside == 1
        # It has no name, and what it took is free when it is closed.
        assert os.listdir(tmp_path) == ["partial"]
        aside.close()
        aside.close()
        assert not aside.has(1, b"one")


async def test_a_target_that_became_shorter_is_not_kept(tmp_path):
    with file_target(tmp_path / "partial") as target:
        os.pwrite(target.fd, OLD[:PIECE], 0)
        aside = Aside(target, GRID)
        await aside.keep({0: b"zero", 1: b"one"})
        assert aside.has(0, b"zero")
        assert not aside.has(1, b"one")
        aside.close()


async def test_a_disk_that_fails_while_it_comes_back_is_said(tmp_path):
    with file_target(tmp_path / "partial") as target:
        os.pwrite(target.fd, OLD, 0)
        aside = Aside(target, GRID)
        await aside.keep({0: b"zero"})
        writable, target.fd = target.fd, os.open(target.path, os.O_RDONLY)
        with pytest.raises(errors.StorageError, match="cannot be used"):
            await aside.put_back({0: b"zero"})
        os.close(target.fd)
        target.fd = writable
        aside.close()
