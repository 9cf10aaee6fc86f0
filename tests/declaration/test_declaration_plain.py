"""The plain form of a declaration, and what is wrong with one."""

import hashlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddfs import errors
from ddfs.declaration import Access, Declaration, parse_duration, problems_of

SHA256 = "sha-256:" + hashlib.sha256(b"").hexdigest()
EVERYTHING = {
    "source": "https://example.org/disk.img.xz",
    "format": "img",
    "checksum": SHA256,
    "unpacked_checksum": SHA256,
    "signature": "https://example.org/SHA256SUMS.gpg",
    "keyring": "/etc/ddfs/keys.gpg",
    "file": "disk.img",
    "size": 7,
    "check_every": 86400,
    "headers": ["X-Key: secret"],
    "headers_file": "/etc/ddfs/headers",
    "netrc_file": "/etc/ddfs/netrc",
    "token_file": "/etc/ddfs/token",
    "client_cert": "/etc/ddfs/cert.pem",
    "client_key": "/etc/ddfs/key.pem",
    "ca_file": "/etc/ddfs/ca.pem",
}


def test_the_plain_form_goes_through_json_and_back() -> None:
    declared = Declaration.from_plain(EVERYTHING)
    assert declared.as_plain() == EVERYTHING
    assert Declaration.from_plain(json.loads(json.dumps(declared.as_plain()))) == declared


def test_what_is_left_out_or_none_is_the_default() -> None:
    plain = {"source": "https://a/b", "format": None, "headers": [], "unverified": False}
    declared = Declaration.from_plain(plain)
    assert declared == Declaration("https://a/b")
    assert declared.as_plain() == {"source": "https://a/b"}
    assert not declared.access


def test_access_is_true_where_something_is_given() -> None:
    assert Access(token_file="/t")


def test_all_mistakes_are_said_at_once_each_with_its_key() -> None:
    wrong = {
        "format": "elf", "checksum": "sha-256:0", "keyring": "keys", "size": True, "headers": "x",
        "unverified": 1, "check_every": "1s", "chekcsum": "", "file": "",
    }  # fmt: skip
    problems = problems_of(wrong)
    assert sorted(p.partition(":")[0] for p in problems) == sorted([*wrong, "source"])
    with pytest.raises(errors.InvalidValueError, match="source: "):
        Declaration.from_plain(wrong)


def test_a_bad_header_is_named_by_its_number_and_not_shown() -> None:
    plain = {"source": "https://a/b", "headers": ["A: b", "secret\r\nB: c"]}
    [problem] = problems_of(plain)
    assert "number 2" in problem
    assert "secret" not in problem


@pytest.mark.parametrize("key", ["source", "checksum_url", "signature"])
@pytest.mark.parametrize("address", ["http://user:geheim[x/y", "//[x", "http://\u2100.example/"])
def test_a_malformed_address_is_said_without_what_may_be_a_login(key: str, address: str) -> None:
    [problem] = problems_of({"source": "https://a/b", key: address})
    assert problem.startswith(f"{key}: a malformed address: ")
    assert "geheim" not in problem


def test_keys_that_are_not_wanted() -> None:
    mine, none = Declaration("https://a/b", keyring="/mine"), Declaration("https://a/b")
    assert (mine.keys("/host"), none.keys("/host"), none.keys(None)) == ("/mine", "/host", None)
    unasked = Declaration.from_plain({"source": "https://a/b", "no_keyring": True})
    assert unasked.keys("/host") is None
    for key in ("keyring", "signature"):
        plain = {"source": "https://a/b", "no_keyring": True, key: "/mine"}
        assert problems_of(plain) == [f"no_keyring: there is a {key} to check it by"]


def test_unverified_and_a_checksum_are_a_contradiction() -> None:
    plain = {"source": "https://a/b", "unverified": True, "checksum": SHA256}
    assert problems_of(plain) == ["unverified: there is a checksum to verify it by"]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15 m", 900), ("1D", 86400)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "d", "-1d", "1.5h", "1y", "٣d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(errors.InvalidValueError, match="no length of time"):
        parse_duration(text)


# On a busy machine the first inputs take long to make.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*EVERYTHING, "other"]),
        st.none() | st.text() | st.integers() | st.booleans() | st.lists(st.text()),
    )
)
def test_whatever_is_given_is_a_declaration_or_a_problem(plain: dict[str, object]) -> None:
    problems = problems_of(plain)
    if problems:
        with pytest.raises(errors.InvalidValueError):
            Declaration.from_plain(plain)
    else:
        declared = Declaration.from_plain(plain)
        assert Declaration.from_plain(declared.as_plain()) == declared


def test_a_login_in_the_source_becomes_a_header_and_is_shown_nowhere() -> None:
    declared = Declaration.from_plain({"source": "https://user:p%40:ss@a.example:8443/x?y@z"})
    assert declared.source == "https://a.example:8443/x?y@z"
    assert declared.access.headers == ("Authorization: Basic dXNlcjpwQDpzcw==",)
    assert Declaration.from_plain(declared.as_plain()) == declared


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"source": "https://u:geheim@a/x", "headers": ["authorization: y"]}, "headers: "),
        ({"source": "ftp://u:geheim@a/x"}, "source: "),
        ({"source": "https://a/x", "checksum_url": "https://u:geheim@b/y"}, "checksum_url: "),
        ({"source": "https://a/x", "signature": "https://u:geheim@b/y"}, "signature: "),
        ({"source": "https://a/x", "headers": ["Range: geheim"]}, "headers: number 1: Range is"),
        ({"source": "https://a/x", "headers": ["host: geheim"]}, "headers: number 1: host is"),
        ({"source": "https://a/x", "headers": ["A: b", "geheim"]}, "headers: number 2: "),
        ({"source": "https://a/x", "headers": ["A: geheim\r\nB: c"]}, "headers: number 1: "),
        ({"source": "https://a/x", "headers": ["A: geheim\x00"]}, "headers: number 1: "),
        ({"source": "https://a/x", "headers": ["A b: geheim"]}, "headers: number 1: "),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused_and_not_repeated(
    plain: dict[str, object], said: str
) -> None:
    [problem] = problems_of(plain)
    assert problem.startswith(said)
    assert "geheim" not in problem
    with pytest.raises(errors.InvalidValueError):
        Declaration.from_plain(plain)
