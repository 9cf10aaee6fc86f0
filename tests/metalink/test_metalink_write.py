"""Manifests to documents and back, and files to manifests."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddfs import errors
from ddfs.metalink import limits, mirrors, read, write
from ddfs.model import (
    LOWEST_PRIORITY,
    MAX_SIZE,
    Digest,
    Grid,
    HashAlgorithm,
    Manifest,
    Mirror,
    PieceMap,
)

# Other work on this machine may slow an example down; the length of the run is pytest's.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

URL = "http://h.example/a"


def is_name(text: str) -> bool:
    try:
        write.names.validate_file_name(text)
    except errors.DocumentError:
        return False
    return True


NAMES = st.one_of(
    st.sampled_from(["a.qcow2", 'd/é "quoted" & <b>\'s.iso', "  a  ", "]]>"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(is_name),
)
MIRRORS = st.lists(
    st.builds(
        Mirror,
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10).map(
            lambda text: mirrors.to_uri(f"https://h.example/?{text}")
        ),
        st.one_of(st.just(LOWEST_PRIORITY), st.integers(1, LOWEST_PRIORITY)),
        st.sampled_from([None, "de", "us"]),
    ),
    min_size=1,
    max_size=6,
).map(lambda found: mirrors.in_order(found, None))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    size = draw(st.one_of(st.none(), st.integers(0, 3000), st.integers(0, MAX_SIZE)))
    digests = [
        Digest(algorithm, draw(st.binary(min_size=width, max_size=width)).hex())
        for algorithm in draw(st.sets(st.sampled_from(HashAlgorithm)))
        for width in [algorithm.digest_size]
    ]
    algorithm = draw(st.sampled_from(HashAlgorithm))
    least = 1 if size is None else max(1, -(-size // 20))
    length = draw(st.integers(least, MAX_SIZE))
    count = draw(st.integers(1, 5)) if size is None else Grid(size, length).count
    hashes = draw(st.randoms(use_true_random=False)).randbytes(count * algorithm.digest_size)
    pieces = PieceMap(algorithm, length, hashes) if count and draw(st.booleans()) else None
    return Manifest(
        draw(NAMES),
        size,
        tuple(digests),
        pieces,
        draw(MIRRORS),
        size_is_stated=size is not None,
        signature=draw(st.sampled_from([None, "-----BEGIN\n\n<&>\n-----END"])),
    )


@UNHURRIED
@given(manifests())
def test_round_trip(manifest: Manifest):
    text = write.make(manifest)
    document = read.parse(text.encode(), base_url=None)
    assert document == read.Document((manifest,))
    assert write.make(document.files[0]) == text


def test_the_text():
    manifest = Manifest(
        "a & b",
        3,
        (Digest(HashAlgorithm.MD5, "0" * 32),),
        PieceMap(HashAlgorithm.MD5, 2, bytes(16) + b"\xff" * 16),
        (Mirror("http://h.example/?a&b", 1, "de", 4), Mirror(URL)),
        notes=("a note",),
    )
    assert write.make(manifest, origin="http://h.example/a.meta4") == (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<metalink xmlns="urn:ietf:params:xml:ns:metalink">\n'
        "  <generator>ddfs</generator>\n"
        "  <origin>http://h.example/a.meta4</origin>\n"
        '  <file name="a &amp; b">\n'
        "    <size>3</size>\n"
        f'    <hash type="md5">{"0" * 32}</hash>\n'
        '    <pieces type="md5" length="2">\n'
        f"<hash>{'0' * 32}</hash>\n"
        f"<hash>{'f' * 32}</hash>\n"
        "    </pieces>\n"
        '    <url location="de" priority="1">http://h.example/?a&amp;b</url>\n'
        f"    <url>{URL}</url>\n"
        "  </file>\n"
        "</metalink>\n"
    )


def test_a_size_that_only_mirrors_said_is_not_written():
    manifest = Manifest("a", 3, (), None, (Mirror(URL),), size_is_stated=False)
    assert "<size>" not in write.make(manifest)


def test_what_cannot_be_written():
    manifest = Manifest("a", 3, (), None, (Mirror(URL),))
    with pytest.raises(errors.DocumentError, match="is refused"):
        write.make(dataclasses.replace(manifest, name="../a"))
    with pytest.raises(errors.InvalidValueError, match="not a usable address"):
        write.make(dataclasses.replace(manifest, mirrors=(Mirror("ftp://h/a"),)))


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 2_500_000])
@pytest.mark.parametrize("piece_length", [None, 1000, 1_048_576, 3_000_000])
def test_describe_file(tmp_path: Path, size: int, piece_length: int | None):
    path = tmp_path / "image.qcow2"
    content = os.urandom(size)
    path.write_bytes(content)
    manifest = write.describe_file(path, [URL, "https://I.example/b"], piece_length)
    length = piece_length or 1_048_576
    pieces = [content[i : i + length] for i in range(0, size, length)]
    assert manifest == Manifest(
        "image.qcow2",
        size,
        (Digest(HashAlgorithm.SHA256, hashlib.sha256(content).hexdigest()),),
        PieceMap(HashAlgorithm.SHA256, length, b"".join(hashlib.sha256(p).digest() for p in pieces))
        if size
        else None,
        (Mirror(URL, 1), Mirror("https://i.example/b", 2)),
    )
    assert read.parse(write.make(manifest).encode(), base_url=None).files == (manifest,)


def test_describe_file_with_another_name(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert write.describe_file(path, [URL], name="d/y.img").name == "d/y.img"


def test_pieces_so_short_that_nobody_could_read_the_document(tmp_path: Path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(errors.InvalidValueError, match="must have 2343 at least"):
        write.describe_file(path, [URL], 1000)
    for wrong in (0, -1):
        with pytest.raises(errors.InvalidValueError):
            write.describe_file(path, [URL], wrong)


def test_the_most_pieces_that_are_written_can_be_read():
    count = write._MAX_PIECES
    pieces = PieceMap(HashAlgorithm.SHA256, 1, bytes(32) * count)
    text = write.make(Manifest("a", count, (), pieces, (Mirror(URL),))).encode()
    assert len(text) <= limits.MAX_DOCUMENT_BYTES
    assert read.parse(text, base_url=None).files[0].pieces == pieces


def test_describe_file_refuses_what_is_no_file(tmp_path: Path):
    with pytest.raises(errors.RequestError, match="No such file"):
        write.describe_file(tmp_path / "missing", [URL])
    with pytest.raises(errors.RequestError, match="not a regular file"):
        write.describe_file(tmp_path, [URL])
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(errors.RequestError, match="not a regular file"):
        write.describe_file(tmp_path / "fifo", [URL])
    with pytest.raises(errors.InvalidValueError, match="not a usable address"):
        write.describe_file(tmp_path, ["ftp://h/a"])
    with pytest.raises(errors.InvalidValueError, match="at least one address"):
        write.describe_file(tmp_path, [])
    with pytest.raises(errors.DocumentError, match="is refused"):
        write.describe_file(tmp_path, [URL], name="../a")


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "log"
    path.write_bytes(b"a" * 3000)
    real_hash = write._hash

    def hash_and_append(file, piece_length):  # type: ignore[no-untyped-def]
        with path.open("ab") as other:
            other.write(b"more")
        return real_hash(file, piece_length)

    monkeypatch.setattr(write, "_hash", hash_and_append)
    with pytest.raises(errors.StorageError, match="it changed while it was read"):
        write.describe_file(path, [URL])
