"""Why a fetch failed, by those who know more than the fetch does."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from ddfs import errors

log = logging.getLogger(__name__)

# The error of the fetch of a content, in better words or as it was.
Explain = Callable[[str, errors.DdfsError], Awaitable[errors.DdfsError]]


async def explained(
    explain: Explain | None, content_id: str, error: errors.DdfsError
) -> errors.DdfsError:
    """What *explain* makes of *error*; *error* itself where there is nobody, or a bug."""
    if explain is None:
        return error
    try:
        return await explain(content_id, error)
    except Exception:
        log.exception("a bug in explaining why a fetch failed")
        return error
