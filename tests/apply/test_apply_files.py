"""Files to declarations and back: mistakes with their places, differences, and what is shown."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddfs.apply.difference import Kind, difference, shown
from ddfs.apply.export import exported
from ddfs.apply.files import File, Mistake, read
from ddfs.apply.lines import key_lines, line_of
from ddfs.declaration import Access, Declaration
from ddfs.model import Digest, ImageFormat

SHA = "sha-256:" + "ab" * 32


def file(text: str | bytes, name: str = "a.toml") -> File:
    data = text.encode() if isinstance(text, str) else text
    return File(f"/etc/ddfs/t/{name}", name, data)


def places(mistakes: list[Mistake]) -> list[tuple[str, int, str]]:
    return [(mistake.file, mistake.line, mistake.key) for mistake in mistakes]


def test_every_mistake_has_its_place_and_all_are_found() -> None:
    first = """\
# comment
[template.good]
source = "https://example.org/a.meta4"

[template.bad]
source = "https://example.org/b.qcow2"
checksum = "sha-256:zz"
headers = [
  "no header",
]
chekc_every = "1d"

[template."no name"]
format = 3
[other]
x = 1
"""
    second = f'[template.good]\nsource = "x"\n[template.ugly]\nsource="x"\nchecksum="{SHA}"\n'
    second += "unverified = true\n"
    declared, mistakes = read([file(first), file(second, "b.toml")])
    assert places(mistakes) == [
        ("a.toml", 7, "template.bad.checksum"),
        ("a.toml", 8, "template.bad.headers"),
        ("a.toml", 11, "template.bad.chekc_every"),
        ("a.toml", 13, "template.no name"),
        ("a.toml", 13, "template.no name.source"),
        ("a.toml", 14, "template.no name.format"),
        ("a.toml", 15, "other"),
        ("b.toml", 1, "template.good"),
        ("b.toml", 6, "template.ugly.unverified"),
    ]
    texts = [str(mistake) for mistake in mistakes]
    assert any("declared already at a.toml:2" in text for text in texts)
    assert list(declared) == ["good"]


@pytest.mark.parametrize(
    ("data", "line", "says"),
    [
        (b"[template.a]\nsource = \n", 2, "no TOML"),
        (b"[template.a]\nsource = 'x'\nsource = 'y'\n", 3, "no TOML"),
        (b"[template.a]\nsource = '\xff'\n", 2, "no UTF-8"),
        (b"template = 3\n", 1, "no table"),
        (b"[[template]]\nsource = 'x'\n", 1, "no table"),
        (b"[template]\na = 1\n", 2, "no table"),
        (b'[template.a]\nsource = """\n', 3, "no TOML"),
        (b"x = " + b"[" * 5000, 1, "no TOML"),
        (b"x = " + b"9" * 5000, 1, "no TOML: a number"),
        (b"[template.a]\nsource = 0x" + b"f" * 5000, 2, "not a huge number"),
    ],
)
def test_what_is_no_declaration_is_said_with_its_line(data: bytes, line: int, says: str) -> None:
    declared, [mistake] = read([file(data)])
    assert (declared, mistake.line) == ({}, line)
    assert says in mistake.message


def test_paths_are_relative_to_their_file_and_addresses_are_not() -> None:
    text = '[template.a]\nsource = "m/a.meta4"\ncheck_every = "2h"\nca_file = "../ca.pem"\n'
    text += '[template.b]\nsource = "https://e.org/b.meta4"\nheaders_file = "/s/h"\n'
    declared, mistakes = read([file(text)])
    assert mistakes == []
    assert declared["a"].source == "/etc/ddfs/t/m/a.meta4"
    assert declared["a"].check_every == 7200
    assert declared["a"].access.ca_file == "/etc/ddfs/ca.pem"
    assert declared["b"].access.headers_file == "/s/h"


def test_lines_of_keys_however_they_are_written() -> None:
    text = 'a.b = 1\n[t."x.y"]\n# c\nk = """\n[not.a.table]\n"""\nl = [\n 1,\n]\n[t]\n'
    text += "z = { q = 1 }\n"
    lines = key_lines(text)
    tomllib.loads(text)
    assert lines[("a", "b")] == 1
    assert lines[("t", "x.y")] == 2
    assert lines[("t", "x.y", "k")] == 4
    assert lines[("t", "x.y", "l")] == 7
    assert lines[("t", "z", "q")] == 11
    assert ("not",) not in lines
    assert line_of(lines, ("t", "x.y", "nowhere")) == 2


def test_a_difference_is_shown_without_secrets_and_then_is_none() -> None:
    before = Declaration("https://e.org/a", checksum=Digest.parse(SHA))
    secret = Access(headers=("Cookie: sesame",))
    after = Declaration("https://e.org/b", check_every=129600, access=secret)
    there = {"a": before, "old": before}
    steps = difference({"a": after, "new": after}, there, prune=True)
    assert [(step.kind, step.name) for step in steps] == [
        (Kind.CHANGE, "a"),
        (Kind.ADD, "new"),
        (Kind.REMOVE, "old"),
    ]
    text = "\n".join(line for step in steps for line in shown(step))
    assert "sesame" not in text
    assert f"  - checksum = {SHA}" in text
    assert "  + source = https://e.org/b" in text
    assert "  + check_every = 36h" in text
    assert difference(there, there, prune=True) == []
    assert difference({}, there, prune=False) == []


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(
    lambda t: "\0" not in t
)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,9}", fullmatch=True),
        st.builds(
            Declaration,
            TEXT.map(lambda text: f"https://e.org/{text}"),
            format=st.sampled_from([None, *ImageFormat]),
            file=st.none() | TEXT,
            size=st.none() | st.integers(1, 2**62),
            check_every=st.none() | st.integers(60, 366 * 86400),
            access=st.builds(
                Access,
                headers=st.lists(st.just("A: b'\"\\")).map(lambda h: tuple(h[:3])),
            ),
        ),
        max_size=4,
    )
)
def test_an_exported_file_reads_back_as_it_was(declared: dict[str, Declaration]) -> None:
    text = exported(declared, with_secrets=True)
    back, mistakes = read([file(text)])
    assert mistakes == []
    assert back == declared


def test_an_export_hints_at_secrets() -> None:
    declared = {"a": Declaration("https://e.org/a", access=Access(headers=("Cookie: sesame",)))}
    text = exported(declared, with_secrets=False)
    assert "sesame" not in text
    assert "# headers = [1 not shown" in text
