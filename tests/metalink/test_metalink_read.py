"""Documents of the shapes that publishers have, the choice of a file, and the caps."""

from __future__ import annotations

import encodings
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.metalink import limits, read
from ddfs.model import Digest, HashAlgorithm, Mirror

OWN = Path(__file__).parent / "data" / "own"
V4 = '<metalink xmlns="urn:ietf:params:xml:ns:metalink">'
V3 = '<metalink version="3.0" xmlns="http://www.metalinker.org/"><files>'
SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
MD5 = "900150983cd24fb0d6963f7d28e17f72"


def own(name: str, location: str | None = None) -> read.Document:
    return read.parse((OWN / name).read_bytes(), base_url=None, location=location)


def parse(text: str) -> read.Document:
    return read.parse(text.encode(), base_url=None)


def file(inside: str, name: str = "a") -> str:
    return f'<file name="{name}">{inside}<url>http://h.example/a</url></file>'


def refusal(text: str) -> str:
    with pytest.raises(errors.DocumentError) as caught:
        parse(text)
    return str(caught.value)


def test_mirrors_stand_by_priority_then_document_order():
    (manifest,) = own("many-countries.meta4").files
    assert manifest.mirrors == (
        Mirror("http://fr.example/debian-12.qcow2", 3, "fr"),
        Mirror("http://us.example/debian-12.qcow2", 20, "us"),
        Mirror("https://de.example/debian-12.qcow2", 20, "de"),
        Mirror("http://last.example/debian-12.qcow2"),
        Mirror("http://zero.example/debian-12.qcow2", location="fr"),
    )


@pytest.mark.parametrize("location", ["de", "DE"])
def test_the_preferred_location_outranks_priorities(location: str):
    (manifest,) = own("many-countries.meta4", location).files
    assert [mirror.url.split("/")[2] for mirror in manifest.mirrors] == [
        "de.example",
        "fr.example",
        "us.example",
        "last.example",
        "zero.example",
    ]


def test_pieces_of_a_known_kind_are_taken_beside_an_unknown_one():
    (manifest,) = own("many-countries.meta4").files
    assert manifest.pieces is not None
    assert manifest.pieces.algorithm is HashAlgorithm.SHA1
    assert manifest.pieces[2].hex() == "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12"
    assert manifest.notes == (
        "zsync piece hashes passed over: unknown kind",
        "addresses passed over: 1 ftp, 1 torrent or metafile",
    )
    assert manifest.is_readable_early


def test_upper_case_hashes_are_hashes():
    (manifest,) = own("many-countries.meta4").files
    assert manifest.digests == (
        Digest(HashAlgorithm.SHA256, SHA256),
        Digest(HashAlgorithm.MD5, MD5),
    )


def test_fedora_shape():
    document = own("fedora-shape.metalink")
    (manifest,) = document.files
    assert manifest.size == 500_000_000
    assert manifest.digest == Digest(HashAlgorithm.SHA256, SHA256)
    assert manifest.mirrors == (
        Mirror("https://a.example/cloud.qcow2", 1, "us", 1),
        Mirror("http://b.example/cloud.qcow2", 2, "us", 1),
        Mirror("https://c.example/cloud.qcow2", 3, "us", 1),
    )


def test_addresses_of_publishers_are_no_mirrors_and_pieces_are_ordered_by_number():
    document = own("publisher-urls.metalink", "se")
    (manifest,) = document.files
    assert document.warnings == ("blanks before the XML declaration",)
    assert [mirror.url.split("/")[2] for mirror in manifest.mirrors] == [
        "se.example",
        "gb.example",
        "least.example",
        "unpreferred.example",
    ]
    assert manifest.size is None
    assert not manifest.size_is_stated
    assert manifest.digests == (
        Digest(HashAlgorithm.SHA1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
    )
    assert manifest.pieces is not None
    assert [digest.hex()[:4] for digest in manifest.pieces] == ["a999", "da39"]


def test_unusable_files_are_left_out_while_others_are_usable():
    document = own("stemcells-shape.meta4")
    assert [manifest.name for manifest in document.files] == ["kvm.tgz", "vsphere.tgz"]
    assert document.refused == (
        (
            "p2p-only.tgz",
            "'p2p-only.tgz': no http or https address (it has 1 ed2k, 1 torrent or metafile)",
        ),
        ("/etc/passwd", "the file name '/etc/passwd' is refused: it is not a plain relative path"),
        ("", "a file without a name"),
    )
    assert document.warnings == tuple(reason for _, reason in document.refused)


def test_select_by_name():
    document = own("stemcells-shape.meta4")
    assert read.select(document, "vsphere.tgz") is document.files[1]
    with pytest.raises(errors.DocumentError, match=r"2 files, say which: 'kvm.tgz', 'vsphere.tgz'"):
        read.select(document, None)
    with pytest.raises(errors.DocumentError, match=r"no file 'x', but 'kvm.tgz', 'vsphere.tgz'"):
        read.select(document, "x")
    with pytest.raises(errors.DocumentError, match="no http or https address"):
        read.select(document, "p2p-only.tgz")


def test_select_the_only_one():
    document = own("fedora-shape.metalink")
    assert read.select(document, None) is document.files[0]
    assert read.select(document, "cloud.qcow2") is document.files[0]


def test_select_finds_a_name_in_another_normalisation():
    document = parse(V4 + file("", "cafe\u0301.iso") + "</metalink>")
    assert read.select(document, "caf\u00e9.iso") is document.files[0]


def test_many_names_are_not_all_listed():
    document = parse(V4 + "".join(file("", f"f{i}") for i in range(50)) + "</metalink>")
    with pytest.raises(errors.DocumentError, match=r"'f19' and 30 more$"):
        read.select(document, None)


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ("<size>1</size><size>2</size>", "two different sizes"),
        (f'<hash type="md5">{MD5}</hash><hash type="MD5">{MD5[::-1]}</hash>', "two different md5"),
        ('<hash type="sha-256">abc</hash>', "'abc' is no sha-256 hash, and there is no other"),
        # The MD5 must not decide because the SHA-256 has a digit too few.
        (f'<hash type="md5">{MD5}</hash><hash type="sha-256">{SHA256[1:]}</hash>', "no sha-256"),
        ("<size>" + "9" * 5000 + "</size>", "beyond what a file can have"),
    ],
)
def test_contradictions_are_refused(inside: str, reason: str):
    assert reason in refusal(V4 + file(inside) + "</metalink>")


def test_a_malformed_hash_beside_a_stronger_one_is_a_note():
    text = f'<hash type="md5">abc</hash><hash type="sha-256">{SHA256}</hash>'
    (manifest,) = parse(V4 + file(text) + "</metalink>").files
    assert manifest.digests == (Digest(HashAlgorithm.SHA256, SHA256),)
    assert manifest.notes == ("'abc' is no md5 hash",)


def test_the_same_size_and_hash_twice_is_no_contradiction():
    text = f'<size>3</size><size>3</size>{f"""<hash type="sha-256">{SHA256}</hash>""" * 2}'
    (manifest,) = parse(V4 + file(text) + "</metalink>").files
    assert (manifest.size, len(manifest.digests)) == (3, 1)


@pytest.mark.parametrize(
    ("pieces", "note"),
    [
        (f'<pieces type="sha-1"><hash>{"0" * 40}</hash></pieces>', "the length ''"),
        ('<pieces type="md5" length="-4"/>', "the length '-4'"),
        ('<pieces type="md5" length="9999999999999999999"/>', "the length 9999999999999999999"),
        ('<pieces type="md5" length="4"/>', "no hashes"),
        (f'<pieces type="md5" length="3"><hash>{MD5}0</hash></pieces>', "is no md5 hash"),
        (f'<pieces length="3"><hash>{MD5}</hash></pieces>', "no type piece hashes passed over"),
    ],
)
def test_unusable_pieces_are_passed_over(pieces: str, note: str):
    (manifest,) = parse(V4 + file(f"<size>3</size>{pieces}") + "</metalink>").files
    assert manifest.pieces is None
    assert any(note in said for said in manifest.notes)


@pytest.mark.parametrize("numbers", ["00", "12", "0x", "0"])
def test_version_3_pieces_with_wrong_numbers_are_passed_over(numbers: str):
    # "0" alone: the second hash has no number while the first has one.
    marks = [f' piece="{n}"' for n in numbers] + [""]
    hashes = "".join(f"<hash{mark}>{MD5}</hash>" for mark in marks[:2])
    pieces = f'<verification><pieces type="md5" length="2">{hashes}</pieces></verification>'
    resources = "<resources><url>http://h.example/a</url></resources>"
    text = f'{V3}<file name="a"><size>3</size>{pieces}{resources}</file></files></metalink>'
    (manifest,) = parse(text).files
    assert manifest.pieces is None
    assert "gaps or repetitions" in manifest.notes[0]


def test_a_pieces_element_without_numbers_follows_the_document():
    hashes = f"<hash>{MD5}</hash><hash>{MD5[::-1]}</hash>"
    pieces = f'<verification><pieces type="md5" length="2">{hashes}</pieces></verification>'
    resources = "<resources><url>http://h.example/a</url></resources>"
    text = f'{V3}<file name="a"><size>3</size>{pieces}{resources}</file></files></metalink>'
    (manifest,) = parse(text).files
    assert manifest.pieces is not None
    assert manifest.pieces[1].hex() == MD5[::-1]


@pytest.mark.parametrize(
    "text",
    [
        f'{V4[:-1]} xml:base="http://h.example/d/"><file name="a"><url>x</url></file></metalink>',
        f'{V4}<file name="a" xml:base="http://h.example/d/"><url>x</url></file></metalink>',
        f'{V4[:-1]} xml:base="http://h.example/"><file name="a" xml:base="d/">'
        "<url>x</url></file></metalink>",
    ],
)
def test_xml_base(text: str):
    assert parse(text).files[0].mirrors == (Mirror("http://h.example/d/x"),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the document is empty"),
        (" \n ", "the document is empty"),
        ("<!doctype HTML>\n<p>busy", "a web page"),
        ("\n<HTML><body>", "a web page"),
        ('<?xml version="1.0"?><!DOCTYPE html><html/>', "a web page"),
        ('<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"/>', "a web page"),
        ("<metalink><file name='a'/></metalink>", "root is 'metalink' without a namespace"),
        ("<rss/>", "root is 'rss' without a namespace"),
        ("QFI\xfb and more", "not well-formed XML"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "not well-formed XML"),
        ('<?xml version="1.0" encoding="utf-7"?><a/>', "not well-formed XML"),
        ('<?xml version="1.0" encoding="shift_jis"?><a/>', "not well-formed XML"),
        (f"{V4}&undefined;</metalink>", "not well-formed XML"),
        (f"{V3}</files></metalink>", "no file in it"),
    ],
)
def test_what_is_no_metalink(text: str, reason: str):
    message = refusal(text)
    assert reason in message
    assert "\n" not in message


def test_a_name_of_an_encoding_that_a_document_invents_does_not_stay():
    # Python remembers each that it was asked for.
    before = len(encodings._cache)  # type: ignore[attr-defined]
    for number in range(20):
        name = f"invented-{number}-" + "x" * 5000
        message = refusal(f'<?xml version="1.0" encoding="{name}"?><a/>')
        assert len(message) < 200
    assert len(encodings._cache) == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ISO-8859-15", "windows-1252", "UTF-16", "koi8-r", "ascii"])
def test_documents_of_the_years_before_utf8(encoding: str):
    text = f'<?xml version="1.0" encoding="{encoding}"?>{V4}{file("<size>5</size>")}</metalink>'
    (manifest,) = read.parse(text.encode(encoding), base_url=None).files
    assert manifest.size == 5


def test_the_servers_words_are_repeated_within_bounds():
    message = refusal(f"{V3}<!-- no\n such\u202e  file {'x' * 500} --></files></metalink>")
    assert message.startswith("the metalink has no file in it; it says 'no such\\u202e file xxx")
    assert len(message) < 160


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (V4 + "<a>" * (limits.MAX_DEPTH + 1), "nested more than 64 deep"),
        (V4 + "<a/>" * limits.MAX_ELEMENTS, "more than 800000 elements"),
        (V4 + "".join(f"<a{i}/>" for i in range(10_002)), "10000 different foreign names"),
        (V4 + "".join(f'<a b{i}=""/>' for i in range(10_002)), "10000 different foreign names"),
        (V4 + "<!--" + "x" * 400_000, "a tag or comment of more than 262144 bytes"),
        (V4 + '<file name="' + "x" * 400_000, "a tag or comment of more than 262144 bytes"),
        (V4 + file("<size>" + "1" * 9000 + "</size>"), "text of <file/size> is longer than 8192"),
        (V4 + file("<url>http://h/a</url>" * 4_000) + "</metalink>", "4000 addresses"),
        (V4 + file('<hash type="md5">x</hash>' * 65) + "</metalink>", "more than 64 hashes"),
        (V4 + file('<pieces type="md5" length="1"/>' * 17), "more than 16 maps of pieces"),
        (V4 + '<file name="a"/>' * 10_001 + "</metalink>", "more than 10000 files"),
        (V3 + '<file name="a"/>' * 10_001, "more than 10000 files"),
        (" " * (limits.MAX_DOCUMENT_BYTES + 1), "more than 33554432 bytes"),
    ],
)
def test_caps(text: str, reason: str):
    assert reason in refusal(text)


def test_blanks_between_many_children_are_not_too_much_text():
    inside = "<url>http://h.example/a</url>" + " " * 100
    (manifest,) = parse(V4 + file(inside * 200) + "</metalink>").files
    assert manifest.mirrors == (Mirror("http://h.example/a"),)


@pytest.mark.parametrize(
    ("start", "verdict"),
    [
        (V4.encode(), True),
        (b"\xef\xbb\xbf" + V4.encode(), True),
        (V4.encode("utf-16"), True),
        (b"\n\n<?xml version='1.0'?><!-- c -->\n<m:metalink xmlns:m='x'>", True),
        (b"<!DOCTYPE html><p>about metalink files", False),
        (b"QFI\xfb\0\0\0\3<metalink>", False),
        (b"", False),
        (b"\xff\xfe\0\0", False),
    ],
)
def test_looks_like_metalink(start: bytes, verdict: bool):
    assert read.looks_like_metalink(start) is verdict


def test_signatures_of_the_file_are_kept_and_others_passed_over():
    signed = '<signature mediatype="Application/PGP-signature">\n SIG &amp;\n </signature>'
    other = '<signature mediatype="application/pkcs7-signature">P7</signature>'
    (found,) = parse(f"{V4}{file(other + signed)}</metalink>").files
    assert (found.signature, found.is_readable_early) == ("SIG &", False)
    (found,) = parse(f"{V4}{file(other)}{'</metalink>'}").files
    assert found.signature is None
    resources = "<resources><url>http://h.example/a</url></resources>"
    inside = '<signature type="pgp" file="a.asc">ONE</signature><signature type="x">y</signature>'
    text = f'{V3}<file name="a"><verification>{inside}</verification>{resources}</file>'
    assert parse(f"{text}</files></metalink>").files[0].signature == "ONE"
    many = signed * (limits.MAX_SIGNATURES_PER_FILE + 1)
    assert "signatures for one file" in refusal(f"{V4}{file(many)}</metalink>")
