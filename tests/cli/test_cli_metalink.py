"""Documents made and shown, without any network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from ddfs import errors
from tests.cli.conftest import Ddfs

MIRRORS = ["https://a.example.org/x.img", "https://b.example.org/x.img"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "x.img"
    path.write_bytes(b"0123456789" * 1000)
    return path


def test_make_then_show(ddfs: Ddfs, image: Path, tmp_path: Path) -> None:
    options = [option for url in MIRRORS for option in ("--url", url)]
    printed = ddfs("metalink", "make", str(image), *options, "--piece-length", "4096")
    assert (printed.code, printed.err) == (0, "")
    target = tmp_path / "x.meta4"
    made = ddfs(
        "metalink", "make", str(image), *options, "--piece-length", "4096", "-o", str(target)
    )
    assert (made.code, made.out) == (0, "")
    assert target.read_text() == printed.out
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    shown = json.loads(ddfs("metalink", "show", str(target), "--json").out)
    assert shown == {
        "name": "x.img",
        "size": 10000,
        "size_is_stated": True,
        "content_id": f"sha-256:{digest}",
        "digests": [f"sha-256:{digest}"],
        "pieces": {"algorithm": "sha-256", "piece_length": 4096, "count": 3},
        "mirrors": [
            {
                "url": url,
                "priority": rank,
                "location": None,
                "max_connections": None,
                "named_from": None,
            }
            for rank, url in enumerate(MIRRORS, start=1)
        ],
        "signature": None,
        "notes": [],
    }
    lines = ddfs("metalink", "show", str(target)).out.splitlines()
    assert lines[1] == "size    10000 (9.8 KiB)"
    assert [line.split()[-1] for line in lines[-2:]] == MIRRORS


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["/nosuch", "--url", MIRRORS[0]], errors.EXIT_REQUEST),
        (["/tmp", "--url", MIRRORS[0]], errors.EXIT_REQUEST),
        (["IMAGE", "--url", "ftp://example.org/x"], errors.EXIT_REQUEST),
        (["IMAGE", "--url", MIRRORS[0], "--piece-length", "0"], errors.EXIT_REQUEST),
        (["IMAGE", "--url", MIRRORS[0], "-o", "IMAGE"], errors.EXIT_REQUEST),
        (["IMAGE", "--url", MIRRORS[0], "-o", "/nosuch/x"], errors.EXIT_HOST),
        (["IMAGE", "--url", MIRRORS[0], "-o", "x" * 300], errors.EXIT_HOST),
        (["IMAGE", "--url", MIRRORS[0], "-o", "."], errors.EXIT_REQUEST),
        (["IMAGE", "--url", MIRRORS[0], "-o", "/"], errors.EXIT_REQUEST),
        (["/nosuch", "--url", MIRRORS[0], "-o", "/etc/hostname"], errors.EXIT_REQUEST),
        (["IMAGE"], errors.EXIT_REQUEST),
    ],
)
def test_make_refuses(ddfs: Ddfs, image: Path, arguments: list[str], code: int) -> None:
    before = image.read_bytes()
    given = [str(image) if argument == "IMAGE" else argument for argument in arguments]
    done = ddfs("metalink", "make", *given)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("ddfs: ")
    assert done.err.count("\n") == 1
    assert image.read_bytes() == before
    assert [path.name for path in image.parent.iterdir() if path.name.endswith(".tmp")] == []


def test_show_refuses(ddfs: Ddfs, image: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.meta4"
    page.write_text("<html><body>404</body></html>")
    for source, code in (
        ("/nosuch.meta4", errors.EXIT_REQUEST),
        (str(page), errors.EXIT_SOURCE),
        (str(image), errors.EXIT_REQUEST),
    ):
        done = ddfs("metalink", "show", source)
        assert (done.code, done.out) == (code, "")
        assert done.err.count("\n") == 1
    done = ddfs("metalink", "show", str(page), "--checksum", "crc:12")
    assert done.err.startswith("ddfs: checksum: 'crc:12' is no checksum: write ALG:HEX")
