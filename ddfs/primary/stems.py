"""How the files of an unfinished content are called, and whose they are by their names. Pure."""

from __future__ import annotations

import re
from typing import Final

# As model.Manifest.content_id makes them: the last part is a file in an unverified archive.
# They become file names, so nothing else may pass.
_CONTENT_ID: Final = re.compile(r"([a-z0-9-]{1,20}):([0-9a-f]{1,128}(?:-[0-9a-f]{16})?)")


def stem_of(content_id: str) -> str:
    """How the names of its files begin; without a dot."""
    match = _CONTENT_ID.fullmatch(content_id)
    if match is None:
        raise ValueError(f"not a content id: {content_id[:140]!r}")
    return f"{match[1]}-{match[2]}"


def content_of(stem: str) -> str | None:
    """The content whose files begin with *stem*, None for a name that is not ours."""
    ends = [match.start() for match in re.finditer("-", stem)]
    found = (f"{stem[:end]}:{stem[end + 1 :]}" for end in reversed(ends))
    return next((each for each in found if _CONTENT_ID.fullmatch(each)), None)
