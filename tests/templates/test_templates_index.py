"""Names and versions: who is meant by which name."""

from __future__ import annotations

import pytest

from ddfs import errors
from ddfs.model import ImageFormat, Template
from ddfs.templates.index import Index


def make(row: int, name: str, content: str = "ab") -> Template:
    return Template(
        row, name, ImageFormat.QCOW2, f"sha-256:{content * 32}", 10, None, "s", 0.0, True, True
    )


def index(*names: str) -> Index:
    found = Index()
    for row, name in enumerate(names, 1):
        found.add(make(row, name))
    return found


def test_a_plain_name_means_the_newest_and_an_exact_one_itself() -> None:
    found = index("debian-12", "debian-12@2", "debian-12@10", "alpine")
    assert found.newest("debian-12").name == "debian-12@10"
    assert found.newest("debian-12@2").name == "debian-12@2"
    assert found.newest("debian-12@1").name == "debian-12"
    assert found.newest("alpine").name == "alpine"
    assert [t.version for t in found.versions("debian-12")] == [1, 2, 10]


def test_who_is_not_there_is_said_with_what_is() -> None:
    found = index("debian-12", "debian-12@3")
    with pytest.raises(errors.UnknownTemplateError, match=r"newest are debian-12@1, debian-12@3"):
        found.newest("debian-12@2")
    with pytest.raises(errors.UnknownTemplateError, match="no template is called 'fedora'"):
        found.newest("fedora")


def test_a_removed_version_uncovers_the_one_before() -> None:
    found = index("a", "a@2")
    found.remove(found.newest("a"))
    assert found.newest("a").name == "a"
    found.remove(found.newest("a"))
    assert found.all() == ()
    assert found.families() == ()
    assert found.with_content("sha-256:" + "ab" * 32) == ()


@pytest.mark.parametrize("name", ["a@1", "a@0", "a@02", "a@", "@2", "a@2@3", "a@x"])
def test_no_template_is_called_so(name: str) -> None:
    with pytest.raises(errors.InvalidValueError):
        make(1, name)


def test_versions_share_a_stem_in_primary_storage_and_not_in_the_pool() -> None:
    first, second = make(1, "a"), make(2, "a@2", "cd")
    assert (first.file_name, second.file_name) == ("a.qcow2", "a@2.qcow2")
    assert first.published_name == "a@" + "ab" * 6 + ".qcow2"
    assert second.published_name == "a@" + "cd" * 6 + ".qcow2"
    assert (first.exact_name, second.exact_name) == ("a@1", "a@2")
