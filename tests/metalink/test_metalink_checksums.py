"""Checksum files of every publisher's habit to digests."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddfs import errors
from ddfs.metalink import checksums
from ddfs.model import Digest, HashAlgorithm

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

MD5 = hashlib.md5(b"x").hexdigest()
SHA256 = hashlib.sha256(b"x").hexdigest()
OTHER = hashlib.sha256(b"y").hexdigest()
SHA512 = hashlib.sha512(b"x").hexdigest()

SIGNED = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# Fedora-Cloud-Base: 12 bytes
SHA256 (a.img) = {SHA256}
- -dash.img
-----BEGIN PGP SIGNATURE-----

iQ==
-----END PGP SIGNATURE-----
SHA256 (unsigned.img) = {OTHER}
"""


def said(text: str | bytes, path: str = "/d/a.img", file: str | None = None) -> list[str]:
    document = text if isinstance(text, bytes) else text.encode()
    return [digest.hexdigest for digest in checksums.digests_of(document, path, file=file)]


@pytest.mark.parametrize(
    "text",
    [
        f"{SHA256}  a.img\n",
        f"{SHA256} *a.img\r\n{OTHER} *b.img\r\n",
        f"{SHA256} a.img",
        f"{SHA256}\ta.img",
        f"\ufeff{SHA256.upper()}  ./a.img\n",
        f"# comment\n\n{OTHER}  other/b.img\n{SHA256}  /build/out/a.img\n",
        f"SHA256 (a.img) = {SHA256}\n",
        f"SHA256(a.img)= {SHA256}\n",
        f"SHA2-256(a.img)= {SHA256}\n",
        f"BLAKE2b-256 (a.img) = {OTHER}\nSHA256 (a.img) = {SHA256}\n",
        f"{SHA256}\n",
        f"  {SHA256}  -\n",
        SIGNED,
        SIGNED.replace("\n", "\r\n"),
    ],
)
def test_the_hash_is_found(text: str):
    assert said(text) == [SHA256]


def test_kinds_are_told_by_length_and_the_strongest_comes_first():
    text = f"{MD5}  a.img\n{SHA512}  a.img\n{SHA256}  a.img\n"
    found = checksums.digests_of(text.encode(), "/a.img")
    assert [d.algorithm for d in found] == [
        HashAlgorithm.SHA512,
        HashAlgorithm.SHA256,
        HashAlgorithm.MD5,
    ]


def test_escaped_names():
    assert said(f"\\{SHA256}  a\\\\b\\n.img\n", file="a\\b\n.img") == [SHA256]
    # Without the leading backslash the text is the name.
    assert said(f"{SHA256}  a\\\\b.img\n", file="a\\\\b.img") == [SHA256]


def test_percent_escapes_of_an_address_are_not_in_file_names():
    assert said(f"{SHA256}  a b+c.img\n", path="/d/a%20b+c.img") == [SHA256]


def test_of_two_folders_the_one_in_the_address_is_meant():
    text = f"{OTHER}  arm64/a.img\n{SHA256}  amd64/a.img\n"
    assert said(text, path="/12/amd64/a.img") == [SHA256]
    assert said(text, file="arm64/a.img") == [OTHER]
    with pytest.raises(errors.DocumentError, match=r"two entries for 'a\.img' that differ"):
        said(text, path="/latest/a.img")


def test_two_entries_that_differ_are_refused_and_two_that_agree_are_one():
    assert said(f"{SHA256}  a.img\n{SHA256.upper()} *./a.img\n") == [SHA256]
    with pytest.raises(errors.DocumentError, match="differ"):
        said(f"{SHA256}  a.img\n{OTHER}  a.img\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("<!DOCTYPE html><p>no", "web page"),
        ("hello\n", "no checksum file"),
        (f"{SHA256}\n{OTHER}\n", "no checksum file"),
        (f"{SHA256}  b.img\n", r"no checksum of 'a\.img', but of 'b\.img'; .* --file"),
        (f"SHA256 (a.img) = {SHA512}\n", "no hash"),
        (SIGNED.replace("SIGNATURE", "x"), "does not end as one"),
        (SIGNED.replace("(a.img)", "(c.img)"), "no checksum of"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(text: str, reason: str):
    with pytest.raises(errors.DocumentError, match=reason) as caught:
        said(text)
    assert "\n" not in str(caught.value)


def test_only_signed_text_counts():
    with pytest.raises(errors.DocumentError):
        said(SIGNED, path="/unsigned.img")
    assert said(SIGNED.replace("(a.img)", "(- -dash.img)"), file="- -dash.img") == [SHA256]


def test_too_large_a_file_is_not_read():
    with pytest.raises(errors.DocumentError, match="not read"):
        said(b"#" * (checksums.MAX_CHECKSUM_FILE_BYTES + 1))


def test_hashes_of_other_kinds_are_not_taken_for_sha_2():
    for name in ("B2SUMS", "a.img.b2sum", "SHA3-256SUMS"):
        with pytest.raises(errors.DocumentError, match="kind that is not known"):
            checksums.refuse_other_kinds(f"http://h.example/{name}")
    checksums.refuse_other_kinds("http://h.example/blake/SHA256SUMS")


@UNHURRIED
@given(st.binary(max_size=300))
def test_arbitrary_bytes(document: bytes):
    message = ""
    try:
        assert checksums.digests_of(document, "/a.img")
    except errors.DocumentError as error:
        message = str(error)
    assert "\n" not in message


@UNHURRIED
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.img", "./a.img", "d/a.img", "b.img", "a", "-"]),
            st.sampled_from([MD5, SHA256, OTHER, SHA512, "z" * 64, ""]),
            st.sampled_from(["{1}  {0}", "{1} *{0}", "SHA256 ({0}) = {1}", "\\{1}  {0}", "{1}"]),
        ),
        max_size=6,
    )
)
def test_whatever_is_found_stands_in_the_document(lines: list[tuple[str, str, str]]):
    text = "\n".join(form.format(name, value) for name, value, form in lines)
    try:
        found = checksums.digests_of(text.encode(), "/x/a.img")
    except errors.DocumentError:
        return
    assert len({digest.algorithm for digest in found}) == len(found)
    assert all(Digest(d.algorithm, d.hexdigest) and d.hexdigest in text for d in found)
