"""The error that a fetch ends with when the scheduler sees no way to go on. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ddfs import errors
from ddfs.fetch.state import FetchState, Verdict
from ddfs.model import Mirror


def explain(state: FetchState, name: str, mirrors: Sequence[Mirror]) -> errors.SourceError:
    """What became of *name*, with the last failure of each mirror that was tried."""
    if state.verdict is Verdict.SUSPECT:
        return errors.ChecksumError(
            f"{name}: several mirrors send the same bytes for piece {state.suspect_piece}, and "
            "they do not match the document; the document is wrong or out of date"
        )
    if not mirrors:
        return errors.MirrorsExhaustedError(f"{name}: there is no mirror to fetch it from")
    what = "no mirror delivers" if state.verdict is Verdict.SILENT else "every mirror failed"
    failures = tuple(
        errors.MirrorError(mirror.url, m.last_error or "sends nothing")
        for m, mirror in zip(state.mirrors, mirrors, strict=False)
        if m.is_tried
    )
    return errors.MirrorsExhaustedError(f"{name}: {what}", failures)
