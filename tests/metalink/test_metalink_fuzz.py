"""Whatever the bytes, parse() gives a document or a DocumentError, and soon."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddfs import errors
from ddfs.metalink import read

# Other work on this machine may slow an example down; the length of the run is pytest's.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DATA = Path(__file__).parent / "data"
SEEDS = [
    path.read_bytes()
    for folder in ("edge", "own")
    for path in sorted((DATA / folder).iterdir())
    if path.suffix in (".meta4", ".metalink") and path.stat().st_size < 5_000
]
TOKENS = [
    *(b"<", b">", b"/>", b"</", b"&#x0;", b"&amp;", b"]]>", b"<![CDATA[", b"<!--", b"<?x?>"),
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"-1", b"999999999999999999999999", b"\xc3\x28"),
    *(b'<file name="b">', b"</file>", b"<url>", b"</url>", b"<size>", b"</size>", b"<hash>"),
    *(b'<pieces length="1" type="md5">', b"</pieces>", b' piece="7"', b' xmlns="x"'),
    *(b' type="sha-256"', b' priority="0"', b' xml:base="http://["', b"http://[", b"%"),
]


def outcome(document: bytes, base_url: str | None = "http://base.example/") -> read.Document | None:
    try:
        return read.parse(document, base_url=base_url, location="de")
    except errors.DocumentError as error:
        message = str(error)
    assert "\n" not in message
    return None


@UNHURRIED
@given(st.binary(max_size=500))
def test_arbitrary_bytes(document: bytes):
    assert outcome(document) is None


@UNHURRIED
@given(
    st.sampled_from(SEEDS),
    st.lists(
        st.tuples(
            st.floats(0, 1),
            st.integers(0, 12),
            st.one_of(st.sampled_from(TOKENS), st.binary(max_size=4)),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_mutated_documents(document: bytes, edits: list[tuple[float, int, bytes]]):
    for place, removed, inserted in edits:
        at = int(place * len(document))
        document = document[:at] + inserted + document[at + removed :]
    found = outcome(document)
    if found is not None:
        check(found)


@UNHURRIED
@given(st.sampled_from(SEEDS), st.floats(0, 1))
def test_truncated_documents(document: bytes, part: float):
    end = int(part * (len(document.rstrip(b"\0\n\r\t ")) - 1))
    assert outcome(document[:end]) is None


NAMES = ["file", "size", "hash", "pieces", "url", "metaurl", "files", "resources", "verification"]
ATTRIBUTES = ["name", "type", "length", "piece", "priority", "preference", "maxconnections"]
VALUES = st.one_of(
    st.sampled_from(
        ["a", "md5", "sha-256", "1", "3", "0", "http://h/a", "x" * 32, "0" * 32, "0" * 64]
    ),
    st.text(st.characters(exclude_characters='<>&"', exclude_categories=["Cc", "Cs"]), max_size=8),
)


@st.composite
def element(draw: st.DrawFn, depth: int = 0) -> str:
    name = draw(st.sampled_from(NAMES))
    attributes = draw(st.dictionaries(st.sampled_from(ATTRIBUTES), VALUES, max_size=3))
    inside = draw(VALUES) if depth > 3 else "".join(draw(st.lists(element(depth + 1), max_size=3)))
    marks = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<{name}{marks}>{inside or draw(VALUES)}</{name}>"


@UNHURRIED
@given(
    st.sampled_from(
        [
            '<metalink xmlns="urn:ietf:params:xml:ns:metalink">{}</metalink>',
            '<metalink xmlns="http://www.metalinker.org/"><files>{}</files></metalink>',
            '<metalink xmlns="http://www.metalinker.org/"><files><file name="a">{}'
            "</file></files></metalink>",
            '<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="a">{}</file></metalink>',
        ]
    ),
    st.lists(element(), max_size=4),
)
def test_any_nesting_of_known_elements(frame: str, inside: list[str]):
    try:
        document = frame.format("".join(inside)).encode()
    except UnicodeEncodeError:
        return
    found = outcome(document)
    if found is not None:
        check(found)


def check(document: read.Document) -> None:
    """What holds for every document that was read."""
    assert document.files
    for manifest in document.files:
        assert manifest.mirrors
        assert len({mirror.url for mirror in manifest.mirrors}) == len(manifest.mirrors)
        assert all(mirror.url.startswith(("http://", "https://")) for mirror in manifest.mirrors)
        assert manifest.size_is_stated == (manifest.size is not None)
        assert all("\n" not in note for note in manifest.notes)
