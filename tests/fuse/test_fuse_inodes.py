from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddfs.fuse import inodes
from ddfs.fuse.inodes import Handle
from ddfs.fuse.view import MAX_ROW, Entry, StorageFigures

rows = st.integers(0, MAX_ROW)


@given(rows)
def test_row_survives_the_way_through_inode_and_handle(row: int) -> None:
    assert inodes.row_of(inodes.file_inode(row)) == row
    assert inodes.row_of(inodes.link_inode(row)) == row
    assert inodes.is_link(inodes.link_inode(row))
    assert not inodes.is_link(inodes.file_inode(row))


@given(rows, st.booleans(), st.booleans(), st.booleans())
def test_handle_survives_packing_in_64_bits(
    row: int, probe: bool, impatient: bool, kept: bool
) -> None:
    handle = Handle(inodes.file_inode(row), probe, impatient, kept)
    assert 0 <= handle.pack() < 2**64
    assert Handle.unpack(handle.pack()) == handle


@given(rows, rows)
def test_different_rows_share_no_inode(one: int, other: int) -> None:
    both = {inodes.file_inode(one), inodes.link_inode(one)}
    others = {inodes.file_inode(other), inodes.link_inode(other)}
    assert both == others if one == other else both.isdisjoint(others)


def test_directories_have_no_row() -> None:
    for inode in (inodes.ROOT, inodes.TEMPLATES):
        assert inodes.row_of(inode) is None
        assert not inodes.is_link(inode)


@pytest.mark.parametrize(
    "wrong",
    [
        {"row": -1},
        {"row": MAX_ROW + 1},
        {"size": -1},
        {"name": ""},
        {"name": "a/b"},
        {"name": ".."},
        {"name": "a\0"},
        {"published_path": "relative"},
    ],
)
def test_entry_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    right: dict[str, object] = {
        "row": 1, "name": "a.img", "size": 0, "mtime_ns": 0, "published_path": None,
    }  # fmt: skip
    Entry(**right)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Entry(**(right | wrong))  # type: ignore[arg-type]


def test_storage_cannot_be_freer_than_it_is_large() -> None:
    with pytest.raises(ValueError):
        StorageFigures(1, 2)
