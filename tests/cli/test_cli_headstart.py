"""When ``ddfs fetch`` may send its first requests before it knows what it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddfs.cli import headstart
from ddfs.cli.fetch_request import FetchRequest
from ddfs.spool.beside import beside

DOCUMENT = """<?xml version="1.0"?>
<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="x.img"><size>{size}</size>
<hash type="sha-256">{hash}</hash><url>http://127.0.0.1:9/x.img</url></file></metalink>
"""


@pytest.fixture
def source(tmp_path: Path, settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DDFS_CONFIG", str(settings_file))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.meta4"
    path.write_text(DOCUMENT.format(size=1000, hash="0" * 64))
    return str(path)


def begins(request: FetchRequest) -> bool:
    begun = headstart.begin(request)
    if begun is None:
        return False
    begun.close()
    return True


def test_the_plain_case(source: str, tmp_path: Path) -> None:
    assert begins(FetchRequest(source))
    assert begins(FetchRequest(source, output=str(tmp_path / "y"), as_json=True))


def test_whatever_changes_the_requests(source: str, tmp_path: Path) -> None:
    for changed in (
        FetchRequest(source, seeds=("seed",)),
        FetchRequest(source, limit_rate="1M"),
        FetchRequest(source, checksum="sha256:" + "0" * 64),
        FetchRequest("http://127.0.0.1:9/x.meta4"),
        FetchRequest(str(tmp_path / "none.meta4")),
        FetchRequest(str(tmp_path)),
        FetchRequest(source, output="none/y"),
    ):
        assert not begins(changed), changed


def test_a_proxy(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert not begins(FetchRequest(source))


def test_what_is_there_already(source: str, tmp_path: Path) -> None:
    beside(tmp_path / "x.img", "part").touch()
    assert not begins(FetchRequest(source))
    (tmp_path / "y").touch()
    assert not begins(FetchRequest(source, output="y"))


@pytest.mark.parametrize("document", ["<html>", DOCUMENT.format(size="", hash="0" * 64)])
def test_a_document_that_says_too_little(source: str, document: str) -> None:
    Path(source).write_text(document)
    assert not begins(FetchRequest(source))
