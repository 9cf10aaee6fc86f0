"""How large a file is, by the mirrors' word, where no document says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import trio

from ddfs import errors
from ddfs.model import MAX_SIZE, Mirror
from ddfs.source.ports import Documents

# How many mirrors are asked for the size until two agree.
_MAX_MIRRORS_ASKED: Final = 8

# Without an answer for so long, one more mirror is asked beside those that are silent.
_PATIENCE_SECONDS: Final = 4.0


async def agreed_size(candidates: Sequence[Mirror], documents: Documents) -> int:
    """The size that two servers agree on, or the only server's word.

    Mirrors with the same host and port are one server: it would only agree with itself.
    Two are asked at once, and the next when one has failed, disagrees or is slow: a dead one
    costs a time-out, and all of them one after the other more than anybody waits.
    """
    first_of = {_server_of(mirror): mirror.url for mirror in reversed(candidates)}
    firsts = set(first_of.values())
    # Stable: the best of each server, then what else there is.
    asked = sorted(candidates, key=lambda mirror: mirror.url not in firsts)[:_MAX_MIRRORS_ASKED]
    poll = _Poll(min(2, len(firsts)), documents)
    async with trio.open_nursery() as nursery:
        for number, mirror in enumerate(asked):
            poll.begin(nursery, mirror)
            if number + 1 < poll.needed:
                continue
            # One answer in hand makes one more enough.
            while poll.size is None and poll.open_questions >= poll.lacking:
                with trio.move_on_after(_PATIENCE_SECONDS) as waiting:
                    await poll.wait()
                if waiting.cancelled_caught:
                    break
            if poll.size is not None:
                break
        while poll.size is None and poll.open_questions:
            await poll.wait()
        nursery.cancel_scope.cancel()
    if poll.size is not None:
        return poll.size
    raise errors.MirrorsExhaustedError(
        "the document has no size, and no two mirrors agree on one"
        if poll.needed == 2
        else "the size is not known, and the only mirror did not say it",
        poll.failures(),
    )


def _server_of(mirror: Mirror) -> tuple[str | None, int | None]:
    """The host and port; of an https and an http address of one host they differ."""
    parts = urlsplit(mirror.url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.hostname, port


class _Poll:
    """What mirrors answered so far. ``size`` is what enough of them agree on."""

    def __init__(self, needed: int, documents: Documents) -> None:
        self.needed = needed
        self.size: int | None = None
        self.open_questions = 0
        self._documents = documents
        self._order: list[str] = []
        self._failures: list[errors.MirrorError] = []
        self._answers: dict[int, list[str]] = {}
        self._voted: set[tuple[int, tuple[str | None, int | None]]] = set()
        self._changed = trio.Event()

    @property
    def lacking(self) -> int:
        """How many more answers would settle it, if they agree."""
        return self.needed - max((self._votes(size) for size in self._answers), default=0)

    def _votes(self, size: int) -> int:
        """How many servers say so."""
        return sum(said == size for said, _ in self._voted)

    def begin(self, nursery: trio.Nursery, mirror: Mirror) -> None:
        """Ask one mirror, as a task of *nursery*."""
        self.open_questions += 1
        self._order.append(mirror.url)
        nursery.start_soon(self._ask, mirror)

    async def _ask(self, mirror: Mirror) -> None:
        try:
            size = await self._documents.size_of(mirror.url)
            if not 0 <= size <= MAX_SIZE:
                raise errors.MirrorError(mirror.url, f"it says that it has {size} bytes")
        except errors.MirrorError as error:
            self._failures.append(error)
        else:
            self._answers.setdefault(size, []).append(mirror.url)
            self._voted.add((size, _server_of(mirror)))
            if self._votes(size) >= self.needed and self.size is None:
                self.size = size
        finally:
            self.open_questions -= 1
            self._changed.set()

    async def wait(self) -> None:
        """Until one more has answered."""
        self._changed = trio.Event()
        await self._changed.wait()

    def failures(self) -> tuple[errors.MirrorError, ...]:
        """Why there is no size: what each mirror said, in the order in which they stand."""
        said = [
            errors.MirrorError(url, f"says {size} bytes")
            for size, urls in self._answers.items()
            for url in urls
        ]
        return tuple(sorted((*self._failures, *said), key=lambda e: self._order.index(e.url)))
