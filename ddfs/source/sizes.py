"""How large a file is, by the mirrors' word, where no document says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ddfs import errors
from ddfs.model import MAX_SIZE, Mirror
from ddfs.source.ports import Documents

# How many mirrors are asked for the size until two agree: a dead one costs a time-out each.
_MAX_MIRRORS_ASKED: Final = 8


async def agreed_size(candidates: Sequence[Mirror], documents: Documents) -> int:
    """The size that two mirrors agree on, or the only mirror's word."""
    needed = min(2, len(candidates))
    failures: list[errors.MirrorError] = []
    answers: dict[int, list[str]] = {}
    for mirror in candidates[:_MAX_MIRRORS_ASKED]:
        try:
            size = await documents.size_of(mirror.url)
        except errors.MirrorError as error:
            failures.append(error)
            continue
        if not 0 <= size <= MAX_SIZE:
            failures.append(errors.MirrorError(mirror.url, f"it says that it has {size} bytes"))
            continue
        answers.setdefault(size, []).append(mirror.url)
        if len(answers[size]) == needed:
            return size
    failures += [
        errors.MirrorError(url, f"says {size} bytes")
        for size, urls in answers.items()
        for url in urls
    ]
    raise errors.MirrorsExhaustedError(
        "the document has no size, and no two mirrors agree on one"
        if needed == 2
        else "the size is not known, and the only mirror did not say it",
        tuple(failures),
    )
