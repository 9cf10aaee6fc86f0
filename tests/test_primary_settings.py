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


def paths_of(**primary: dict[str, object]) -> dict[str, Path]:
    return storages.paths_of(config.parse({"mountpoint": "/m", "primary": primary}))


def test_pools_and_paths_in_their_order(pools: Path) -> None:
    describe(pools, "nfs", "netfs", "/srv/nfs")
    found = paths_of(first={"path": "/a"}, second={"pool": "nfs"})
    assert list(found.items()) == [("first", Path("/a")), ("second", Path("/srv/nfs"))]


def test_volumes_are_fetched_to_a_staging_first(pools: Path) -> None:
    describe(pools, "disk", "disk", "/dev")
    describe(pools, "vg", "logical", "/dev/vg")
    found = paths_of(a={"pool": "disk", "staging": "/fast"}, b={"pool": "vg", "untested": True})
    assert list(found.values()) == [Path("/fast"), Path("/var/lib/ddfs/staging/b")]


@pytest.mark.parametrize(
    ("primary", "word"),
    [
        (
            {"a": {"pool": "vg"}},
            "type logical, .* never tested with .* untested = true",
        ),
        ({"a": {"pool": "ceph"}}, "type rbd, in which ddfs cannot make volumes .* dir, disk, fs"),
        ({"a": {"pool": "ceph", "untested": True}}, "type rbd, in which ddfs cannot make volumes"),
        ({"a": {"pool": "disk", "shared": True}}, "only a directory can be shared"),
        ({"a": {"pool": "nfs", "staging": "/s"}}, "staging: 'nfs' holds files"),
        ({"a": {"path": "/a", "staging": "/s"}}, "staging: only for the volumes of a pool"),
        ({"a": {"pool": "disk"}, "b": {"pool": "disk"}}, "pool disk is primary.a already"),
        ({"a": {"pool": "disk", "staging": "/m/s"}}, "/m/s lies in the mountpoint itself"),
        ({"a": {"pool": "gone"}}, "libvirt has no pool 'gone'"),
        ({"a": {"path": "/m/x"}}, "lies in the mountpoint itself"),
        ({"a": {"path": "/a"}, "b": {"path": "/a/."}}, "primary.b: /a is primary.a already"),
    ],
)
def test_what_cannot_be_one_is_named(
    pools: Path, primary: dict[str, dict[str, object]], word: str
) -> None:
    describe(pools, "vg", "logical", "/dev/vg")
    describe(pools, "disk", "disk", "/dev")
    describe(pools, "nfs", "netfs", "/srv/nfs")
    (pools / "ceph.xml").write_text("<pool type='rbd'><name>ceph</name></pool>")
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


def test_a_pools_definition_is_kept_and_follows_libvirts(tmp_path: Path) -> None:
    etc, state = tmp_path / "etc", tmp_path / "state"
    etc.mkdir()
    state.mkdir()
    storages.keep_definition(state, "vg", etc)
    kept = state / "pools" / "vg.xml"
    assert not kept.exists()
    for text in ("<pool>1</pool>", "<pool>2</pool>"):
        (etc / "vg.xml").write_text(text)
        storages.keep_definition(state, "vg", etc)
        assert kept.read_text() == text
    (etc / "vg.xml").unlink()
    storages.keep_definition(state, "vg", etc)
    assert kept.read_text() == "<pool>2</pool>"
    assert [path.name for path in kept.parent.iterdir()] == ["vg.xml"]
