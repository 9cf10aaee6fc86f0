"""Documents that public servers published, where a collection of them is at hand.

They are others' data and not part of this project: ``$DDFS_METALINKS`` or a folder
``shared/metalinks`` near the checkout may have them in its folder ``real``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ddfs import errors
from ddfs.metalink import read

HOME = Path(os.environ.get("DDFS_METALINKS") or Path(__file__).parents[3] / "shared" / "metalinks")
DOCUMENTS = sorted((HOME / "real").glob("*"))

# What has no http address, no file, no usable hash value or no end; everything else is read.
REFUSED = {
    r"librepo-mock__(badfilename|good_0[12]|mirrors_01|varsub)": "no http or https address",
    r"librepo-mock__(metalink_with_alternates|nourls)": "no other hash as strong",
    r"librepo__metalink_good_03": "no http or https address",
    r"librepo__metalink_really_bad_02": "not well-formed XML, or cut off",
    r"librepo__metalink_really_bad_03": "no file in it; it says 'No files'",
    r"metalinker.org__BU_Linux": "no http or https address",
    r"pymetalink__4_": "no http or https address (it has 1 ed2k)",
    r"xrootd__input4": "the file name '/data/output.dat' is refused",
    r"xrootd__": "no http or https address",
}


def expected_refusal(name: str) -> str | None:
    return next((why for pattern, why in REFUSED.items() if re.match(pattern, name)), None)


@pytest.mark.skipif(not DOCUMENTS, reason=f"no collection of metalinks in {HOME}")
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_read_with_mirrors_in_order_or_refused_with_one_line(path: Path):
    reason = expected_refusal(path.name)
    if reason is not None:
        with pytest.raises(errors.DocumentError) as caught:
            read.parse(path.read_bytes(), base_url="http://base.example/")
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    document = read.parse(path.read_bytes(), base_url="http://base.example/")
    stated = ranks_stated(path.read_bytes())
    for manifest in document.files:
        found = [mirror.priority for mirror in manifest.mirrors]
        assert found == sorted(found)
        for mirror in manifest.mirrors:
            assert mirror.priority in stated.get(mirror.url, {mirror.priority})
    assert document.files


def ranks_stated(document: bytes) -> dict[str, set[int]]:
    """The ranks of each address by a reading that shares nothing with the parser."""
    stated: dict[str, set[int]] = {}
    text = document.decode("utf-8", "replace").replace("&amp;", "&")
    for attributes, url in re.findall(r"<url\b([^>]*)>\s*([^<\s]+)\s*</url>", text):
        priority = re.search(r'\bpriority="(\d+)"', attributes)
        preference = re.search(r'\bpreference="(-?\d+)"', attributes)
        if priority:
            rank = int(priority[1])
            rank = rank if 1 <= rank <= 999_999 else 999_999
        elif preference:
            rank = max(1, 101 - int(preference[1]))
        else:
            rank = 999_999
        stated.setdefault(url, set()).add(rank)
    return stated


@pytest.mark.skipif(not DOCUMENTS, reason=f"no collection of metalinks in {HOME}")
def test_most_are_read():
    refused = [path.name for path in DOCUMENTS if expected_refusal(path.name)]
    assert len(refused) < len(DOCUMENTS) / 2
