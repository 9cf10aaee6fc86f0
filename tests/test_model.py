"""Values: the algebra of ranges and grids, and what cannot be made."""

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddfs import errors
from ddfs.model import (
    ByteRange,
    Digest,
    Grid,
    HashAlgorithm,
    ImageFormat,
    Manifest,
    MiB,
    PieceMap,
    Template,
)
from ddfs.names import validate_template_name

SHA = hashlib.sha256(b"x").hexdigest()


@given(st.integers(0, 10_000), st.integers(1, 5_000), st.data())
def test_the_pieces_of_a_grid_cover_it_once(size: int, length: int, data: st.DataObject) -> None:
    grid = Grid(size, length)
    pieces = [grid.bytes_of(piece) for piece in range(grid.count)]
    assert sum(len(piece) for piece in pieces) == size
    assert all(a.end == b.start for a, b in itertools.pairwise(pieces))
    if size:
        start = data.draw(st.integers(0, size - 1))
        wanted = ByteRange(start, data.draw(st.integers(start + 1, size + 10)))
        under = grid.pieces_under(wanted)
        assert [p for p in range(grid.count) if pieces[p].intersection(wanted)] == list(under)


def test_ranges_that_are_none_are_refused() -> None:
    for start, end in [(3, 3), (4, 3), (-1, 2)]:
        with pytest.raises(ValueError, match="not a range"):
            ByteRange(start, end)
    with pytest.raises(ValueError, match="no piece"):
        Grid(10, 4).bytes_of(3)
    with pytest.raises(ValueError, match="not a grid"):
        Grid(-1, 4)


@pytest.mark.parametrize(
    "text", [f"sha-256:{SHA}", f"SHA256:{SHA.upper()}", f"{{SHA-256}}{SHA}", f" sha256:{SHA} "]
)
def test_a_checksum_is_read_as_people_write_it(text: str) -> None:
    assert Digest.parse(text) == Digest(HashAlgorithm.SHA256, SHA)


@pytest.mark.parametrize("text", ["", SHA, "sha-256:", f"sha-256:{SHA}0", "crc32:00", "{}x", ":"])
def test_what_is_no_checksum_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidValueError):
        Digest.parse(text)


def test_the_strongest_digest_names_the_content() -> None:
    weak = Digest(HashAlgorithm.MD5, "0" * 32)
    strong = Digest(HashAlgorithm.SHA256, SHA)
    manifest = Manifest("x", 1, (weak, strong), None, ())
    assert manifest.digest == strong
    assert manifest.content_id == f"sha-256:{SHA}"
    assert not weak.algorithm.is_strong
    assert strong.algorithm.is_strong


def test_without_a_digest_the_piece_hashes_and_the_size_name_it() -> None:
    pieces = PieceMap(HashAlgorithm.SHA1, 4, bytes(40))
    one = Manifest("x", 8, (), pieces, ())
    other = Manifest("x", 7, (), pieces, ())
    assert one.content_id.startswith("pieces:")
    assert one.content_id != other.content_id
    with pytest.raises(errors.DocumentError, match="nothing to verify"):
        _ = Manifest("x", 8, (), None, ()).content_id


def test_a_manifest_has_as_many_piece_hashes_as_pieces() -> None:
    with pytest.raises(ValueError, match="piece hashes"):
        Manifest("x", 9, (), PieceMap(HashAlgorithm.SHA1, 4, bytes(40)), ())
    with pytest.raises(ValueError, match="not a piece map"):
        PieceMap(HashAlgorithm.SHA1, 4, bytes(41))


def test_a_piece_map_gives_each_hash() -> None:
    pieces = PieceMap(HashAlgorithm.MD5, 4, bytes(16) + bytes([1]) * 16)
    assert list(pieces) == [bytes(16), bytes([1]) * 16]
    with pytest.raises(IndexError):
        _ = pieces[2]


def test_the_own_grid_has_small_pieces_for_small_files() -> None:
    assert Manifest("x", 10 * MiB, (), None, ()).grid.piece_length == MiB
    assert Manifest("x", 1000 * MiB, (), None, ()).grid.piece_length == 4 * MiB


@given(st.text(max_size=140))
def test_template_names_are_safe_file_names(name: str) -> None:
    try:
        validate_template_name(name)
    except errors.InvalidValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert name[0].isalnum()
        assert not set(name) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+"
        )


def test_names_in_the_pool_and_in_primary_storage() -> None:
    template = Template(
        row=1, name="debian-12", format=ImageFormat.parse("raw"), content_id=f"sha-256:{SHA}",
        size=3, virtual_size=None, source="x", added_at=0.0, head_is_verified=True,
        is_readable_early=True,
    )  # fmt: skip
    assert template.file_name == "debian-12.img"
    assert template.published_name == f"debian-12@{SHA[:12]}.img"
    with pytest.raises(errors.InvalidValueError, match="unknown format"):
        ImageFormat.parse("exe")
