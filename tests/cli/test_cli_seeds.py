"""`--seed`, of `ddfs fetch` and of `ddfs prefetch`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ddfs import errors
from tests.cli.conftest import Ddfs
from tests.cli.test_cli_fetch import image, serving, site
from tests.control.fake import FakeService, RunningDaemon

__all__ = ["image", "site"]


def test_a_fetch_takes_what_a_seed_has(ddfs: Ddfs, site: str, image: Path, tmp_path: Path) -> None:
    seed = tmp_path / "older"
    seed.write_bytes(image.read_bytes()[: 4 * 1024 * 1024] + b"other")
    target = tmp_path / "new"
    done = ddfs("fetch", f"{site}/good.meta4", "-o", str(target), "--seed", str(seed))
    assert (done.code, done.err) == (0, "")
    assert target.read_bytes() == image.read_bytes()
    # The image repeats itself: all but its last, shorter piece is in the seed.
    assert "  4.8 MiB were here already" in done.out.splitlines()


def test_seeds_alone_are_enough(ddfs: Ddfs, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "seed").write_bytes(content)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    files = {"/x.img": content}
    with serving(files) as address:
        done = ddfs(
            *("fetch", f"{address}/x.img", "--checksum", digest, "-o", str(tmp_path / "y")),
            *("--seed", str(tmp_path / "y-not-the-size-of-it"), "--seed", str(tmp_path / "seed")),
        )
        # What is no file is a mistake, before any request.
        assert done.code == errors.EXIT_REQUEST
        assert done.err.startswith(f"ddfs: {tmp_path}/y-not-the-size-of-it: cannot be a seed: ")
        (tmp_path / "y-not-the-size-of-it").write_bytes(b"")
        done = ddfs(
            *("fetch", f"{address}/x.img", "--checksum", digest, "-o", str(tmp_path / "y")),
            *("--seed", str(tmp_path / "y-not-the-size-of-it"), "--seed", str(tmp_path / "seed")),
        )
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "y").read_bytes() == content


def test_prefetch_hands_absolute_paths_to_the_daemon(
    ddfs: Ddfs,
    daemon: RunningDaemon,
    service: FakeService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.img").write_bytes(b"x")
    done = ddfs("prefetch", "alpine", "--seed", "old.img", "--no-wait")
    assert (done.code, done.err) == (0, "")
    assert service.seeds == [str(tmp_path / "old.img")]
    done = ddfs("prefetch", "debian-12", "--seed", "gone.img")
    assert done.code == errors.EXIT_REQUEST
    assert done.err.startswith(f"ddfs: {tmp_path}/gone.img: cannot be a seed")
