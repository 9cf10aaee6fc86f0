"""Which directories the settings mean."""

from pathlib import Path

import pytest

from ddfs import config, errors, storages
from ddfs.image.domain import PoolTargets


@pytest.fixture
def pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libvirt's pools are described."""
    monkeypatch.setattr(storages, "PoolTargets", lambda: PoolTargets([str(tmp_path)]))
    return tmp_path


def describe(pools: Path, name: str, kind: str, target: str) -> None:
    (pools / f"{name}.xml").write_text(
        f"<pool type='{kind}'><name>{name}</name><target><path>{target}</path></target></pool>"
    )


def paths_of(**primary: dict[str, str]) -> dict[str, Path]:
    return storages.paths_of(config.parse({"mountpoint": "/m", "primary": primary}))


def test_pools_and_paths_in_their_order(pools: Path) -> None:
    describe(pools, "nfs", "netfs", "/srv/nfs")
    found = paths_of(first={"path": "/a"}, second={"pool": "nfs"})
    assert list(found.items()) == [("first", Path("/a")), ("second", Path("/srv/nfs"))]


@pytest.mark.parametrize(
    ("primary", "word"),
    [
        ({"a": {"pool": "vg"}}, "holds devices and no files; give a pool of type dir, fs or netfs"),
        ({"a": {"pool": "gone"}}, "libvirt has no pool 'gone'"),
        ({"a": {"path": "/m/x"}}, "lies in the mountpoint itself"),
        ({"a": {"path": "/a"}, "b": {"path": "/a/."}}, "primary.b: /a is primary.a already"),
    ],
)
def test_what_cannot_be_one_is_named(
    pools: Path, primary: dict[str, dict[str, str]], word: str
) -> None:
    describe(pools, "vg", "logical", "/dev/vg")
    with pytest.raises(errors.ConfigError, match=word):
        paths_of(**primary)


def test_a_file_system_that_two_storages_are_on_is_counted_once(tmp_path: Path) -> None:
    for name in ("a", "b", "state"):
        (tmp_path / name).mkdir()
    settings = config.parse(
        {
            "state_dir": str(tmp_path / "state"),
            "primary": {name: {"path": str(tmp_path / name)} for name in ("a", "b")},
        }
    )
    both = storages.storages_of(settings)
    for storage in both:
        storage.prepare()
    try:
        total, free = storages.figures_of(both)
        assert total == both[0].figures()[0] == both[1].figures()[0]
        assert 0 < free <= total
    finally:
        for storage in both:
            storage.close()
