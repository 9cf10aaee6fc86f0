from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.fuse import underlay
from ddfs.fuse.underlay import Underlay


@pytest.fixture
def under(tmp_path: Path) -> Iterator[Underlay]:
    directory = Underlay.open(tmp_path)
    yield directory
    directory.close()


def links(tmp_path: Path) -> dict[str, str]:
    directory = tmp_path / "templates"
    return {name: os.readlink(directory / name) for name in os.listdir(directory)}


def test_links_are_made_replaced_and_taken_away(under: Underlay, tmp_path: Path) -> None:
    under.link("a.img", "/pool/a@1.img")
    under.link("a.img", "/pool/a@2.img")
    under.link("b.img", "/pool/b@1.img")
    assert links(tmp_path) == {"a.img": "/pool/a@2.img", "b.img": "/pool/b@1.img"}
    under.unlink("a.img")
    under.unlink("never.img")
    assert links(tmp_path) == {"b.img": "/pool/b@1.img"}


def test_a_link_that_is_right_is_left_alone(under: Underlay, tmp_path: Path) -> None:
    under.link("a.img", "/pool/a@1.img")
    before = os.lstat(tmp_path / "templates" / "a.img").st_ino
    under.link("a.img", "/pool/a@1.img")
    assert os.lstat(tmp_path / "templates" / "a.img").st_ino == before


def test_reconciling_leaves_exactly_what_is_wanted(under: Underlay, tmp_path: Path) -> None:
    under.link("old.img", "/pool/old")
    under.link("moved.img", "/pool/before")
    # What a crash between the two steps of link() leaves.
    (tmp_path / "templates" / ".ddfs-0123").symlink_to("/pool/x")
    wanted = {"moved.img": "/pool/after", "new.img": "/pool/new"}
    under.reconcile(wanted)
    assert links(tmp_path) == wanted


def test_foreign_files_are_never_touched(under: Underlay, tmp_path: Path) -> None:
    foreign = tmp_path / "templates" / "mine.img"
    foreign.write_text("precious")
    (tmp_path / "templates" / "dir").mkdir()
    under.link("mine.img", "/pool/x")
    under.unlink("mine.img")
    under.reconcile({})
    assert foreign.read_text() == "precious"
    assert (tmp_path / "templates" / "dir").is_dir()


def test_works_through_its_descriptor_alone(under: Underlay, tmp_path: Path) -> None:
    (tmp_path / "templates").rename(tmp_path / "elsewhere")
    under.link("a.img", "/pool/a")
    assert os.readlink(tmp_path / "elsewhere" / "a.img") == "/pool/a"


def test_a_failure_is_told_and_loses_nothing(under: Underlay, tmp_path: Path) -> None:
    under.link("a.img", "/pool/a")
    with pytest.raises(errors.StorageError, match="under the mount"):
        under.link("a.img", "/" + "x" * 5000)
    assert links(tmp_path) == {"a.img": "/pool/a"}


def test_two_never_have_it_at_once(
    under: Underlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(underlay, "LOCK_SECONDS", 0.05)
    with pytest.raises(errors.MountError, match="locked"):
        Underlay.open(tmp_path)
    under.close()
    Underlay.open(tmp_path).close()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "templates").write_text("")
    with pytest.raises(errors.MountError, match="cannot be used"):
        Underlay.open(tmp_path)
