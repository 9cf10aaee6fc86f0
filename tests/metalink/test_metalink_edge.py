"""Every document in data/edge, and what is made of it.

``data/edge/expected.json`` says what must come out; where it leaves a choice, the choice
stands in a comment here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.metalink import read
from ddfs.model import Digest, HashAlgorithm, Manifest, Mirror, PieceMap

EDGE = Path(__file__).parent / "data" / "edge"
BASE_URL = "http://base.example/d/x.meta4"

MD5 = Digest(HashAlgorithm.MD5, "900150983cd24fb0d6963f7d28e17f72")
SHA1 = Digest(HashAlgorithm.SHA1, "a9993e364706816aba3e25717850c26c9cd0d89d")
SHA256 = Digest(
    HashAlgorithm.SHA256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
)
PLAIN = Mirror("http://example.com/a")


def hashed(name: str) -> Manifest:
    return Manifest(name, 3, (SHA256,), None, (Mirror("http://example.com/a.iso", 1),))


def bare(*notes: str, size: int | None = 3, pieces: PieceMap | None = None) -> Manifest:
    return Manifest("a", size, (), pieces, (PLAIN,), size is not None, notes)


READ = {
    "bom.meta4": hashed("a.iso"),
    "utf16.meta4": hashed("a.iso"),
    "minimal_v4.meta4": hashed("a.iso"),
    "dates.meta4": hashed("a.iso"),
    "dates_bad.meta4": hashed("a.iso"),
    "foreign_markup.meta4": bare(),
    "prefix_ns.meta4": bare(),
    "url_dup.meta4": bare(),
    # Choice: blanks around values are stripped.
    "size_plus_ws.meta4": bare(),
    "hash_in_pieces_wrong_count.meta4": bare(
        "sha-256 piece hashes passed over: 2 hashes where 3 are needed", size=3_000_000
    ),
    "hash_type_aliases.meta4": Manifest("a", 3, (SHA256,), None, (PLAIN,)),
    # Choice: read, for `metalink show`; source.resolve() refuses what has no usable hash.
    "hash_unknown_only.meta4": bare("hashes of unknown kind passed over: whirlpool"),
    "lang_attr.meta4": Manifest(
        "a",
        3,
        (),
        None,
        (Mirror("http://example.com/a", location="xx"), Mirror("http://example.com/b")),
    ),
    "mirrorcache_like.meta4": Manifest(
        "a.qcow2",
        3,
        (SHA256, SHA1, MD5),
        None,
        (
            Mirror("http://de.example.org/a.qcow2", 1, "de"),
            Mirror("http://fr.example.org/a.qcow2", 2, "fr"),
        ),
    ),
    # Choice: preferences below 1 go on below, so that their order stays.
    "mirrorcache_like_v3.metalink": Manifest(
        "a",
        3,
        (SHA256, SHA1, MD5),
        PieceMap(HashAlgorithm.SHA1, 1_048_576, bytes.fromhex(SHA1.hexdigest)),
        (
            Mirror("http://de.example.org/a", 1, "de"),
            Mirror("http://fr.example.org/a", 101, "fr"),
            Mirror("http://fr2.example.org/a", 102, "fr"),
        ),
    ),
    "mirrormanager_like.metalink": Manifest(
        "a.qcow2",
        3,
        (SHA256,),
        None,
        (
            Mirror("https://us.example.org/a.qcow2", 1, "us", 1),
            Mirror("http://priv.example.org/a.qcow2", 100, None, 1),
        ),
        notes=("addresses passed over: 1 rsync",),
    ),
    # Choice: names are literal on Linux, blanks and tildes included.
    "name_15.meta4": hashed("~/x"),
    "name_16.meta4": hashed("-rf"),
    "name_17.meta4": hashed("con"),
    "name_20.meta4": hashed("  a"),
    "name_21.meta4": hashed("café.iso"),
    "name_22.meta4": hashed("写真/镜像.qcow2"),
    # Choice: read as version 3 with a warning, since programs in use read it.
    "no_ns_v3.metalink": bare(size=None),
    # Choice: neither of the two is taken.
    "pieces_dup_type.meta4": bare(
        *["sha-256 piece hashes passed over: there are several of that kind"] * 2
    ),
    "pieces_no_size.meta4": bare(
        size=None,
        pieces=PieceMap(HashAlgorithm.SHA256, 1_048_576, bytes.fromhex(SHA256.hexdigest)),
    ),
    "pieces_two_types.meta4": bare(
        pieces=PieceMap(HashAlgorithm.SHA256, 262_144, bytes.fromhex(SHA256.hexdigest))
    ),
    # Choice: the pieces are passed over, not the file.
    "pieces_zero_len.meta4": bare("sha-256 piece hashes passed over: the length 0"),
    # Choice: the size counts as not stated, as a size that is no number does.
    "size_negative.meta4": bare("the size '-1' is no number and was passed over", size=None),
    # Choice: an address with a user name in it is passed over (RFC 9110 section 4.2.4).
    "url_schemes.meta4": Manifest(
        "a",
        3,
        (),
        None,
        (
            PLAIN,  # "//example.com/a", and again as "HTTP://EXAMPLE.com/a"
            Mirror("http://base.example/d/a/b.iso"),
            Mirror("http://[::1]:8080/a"),
            Mirror("http://example.com/a%20b"),
            Mirror("http://xn--bcher-kva.example/%C3%A4"),
        ),
        notes=(
            "addresses passed over: 1 ed2k, 1 file, 1 gopher, 1 javascript, 1 magnet",
            "an address was passed over: not a usable address: it has a user name or password",
        ),
    ),
    # Choice: resources@maxconnections is every mirror's that has none of its own; 0 is none.
    "v3_maxconnections.metalink": Manifest(
        "a",
        3,
        (),
        None,
        (Mirror("http://a.example/a", 1, None, 1), Mirror("http://b.example/a", 999_999, None, 4)),
    ),
    "v3_pieces_gap.metalink": bare(
        "sha1 piece hashes passed over: gaps or repetitions in the numbers of the pieces"
    ),
    "v3_torrent_by_suffix.metalink": Manifest(
        "a",
        None,
        (),
        None,
        (Mirror("http://example.com/b.torrent"),),
        False,
        ("addresses passed over: 1 torrent or metafile",),
    ),
}

REFUSED = {
    "billion_laughs.meta4": "document type declaration",
    "xxe_file.meta4": "document type declaration",
    # Choice: refused, not ignored.
    "external_dtd.meta4": "document type declaration",
    # Choice: nesting beyond the cap is refused, whatever it contains.
    "deep_nesting.meta4": "nested more than 64 deep",
    "dup_names.meta4": "2 files of the same name 'a'",
    # Choice: names that a person cannot tell apart are the same name.
    "dup_names_case_norm.meta4": "2 files of the same name 'café'",
    "empty_v4.meta4": "no file in it",
    "html_error_page.meta4": "this is a web page, not a metalink",
    "mm_failure.metalink": "it says 'pub/x/y.iso not found or has not metalink'",
    "name_01.meta4": "'../x' is refused: it is not a plain relative path",
    "name_04.meta4": "'./a' is refused: it is not a plain relative path",
    "name_05.meta4": "'..' is refused: it is not a plain relative path",
    "name_06.meta4": "'a//b' is refused: it is not a plain relative path",
    "name_07.meta4": "'' is refused: it is empty",
    "name_09.meta4": "is refused: it has a backslash",
    "name_11.meta4": "not well-formed XML",
    "name_12.meta4": "longer than 255 bytes",
    # Choice: 16 folders are deep enough.
    "name_13.meta4": "more than 16 folders deep",
    "name_14.meta4": "control or direction characters",
    "no_urls.meta4": "no http or https address",
    "size_huge.meta4": "its size is beyond what a file can have",
    "truncated.meta4": "not well-formed XML, or cut off",
    "wrong_ns.meta4": "root is 'metalink' in namespace 'urn:example:other'",
}


def test_every_document_is_in_exactly_one_table():
    listed = set(json.loads((EDGE / "expected.json").read_text()))
    present = {path.name for path in EDGE.iterdir()} - {"expected.json"}
    assert listed == present == READ.keys() | REFUSED.keys()
    assert not READ.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", READ)
def test_read(name: str):
    document = read.parse((EDGE / name).read_bytes(), base_url=BASE_URL)
    assert document.files == (READ[name],)
    assert document.refused == ()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_clear_line(name: str):
    with pytest.raises(errors.DocumentError) as caught:
        read.parse((EDGE / name).read_bytes(), base_url=BASE_URL)
    assert REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_relative_addresses_without_a_base_are_passed_over():
    document = read.parse((EDGE / "url_schemes.meta4").read_bytes(), base_url=None)
    assert [m.url for m in document.files[0].mirrors] == [
        "http://example.com/a",
        "http://[::1]:8080/a",
        "http://example.com/a%20b",
        "http://xn--bcher-kva.example/%C3%A4",
    ]
    assert any("relative" in note for note in document.files[0].notes)


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("mirrorcache_like.meta4", "http://download.example.org/a.qcow2.meta4"),
        ("mirrorcache_like_v3.metalink", "http://download.example.org/a.metalink"),
        ("mirrormanager_like.metalink", None),
        ("minimal_v4.meta4", None),
    ],
)
def test_dynamic_origin(name: str, origin: str | None):
    document = read.parse((EDGE / name).read_bytes(), base_url=BASE_URL)
    assert document.dynamic_origin == origin


def test_a_missing_namespace_is_warned_about():
    document = read.parse((EDGE / "no_ns_v3.metalink").read_bytes(), base_url=BASE_URL)
    assert document.warnings == ("no namespace; read as version 3",)
