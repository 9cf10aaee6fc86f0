"""Waits for fetches of the daemon, with a progress bar for each."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from ddfs import errors
from ddfs.cli.text import format_image_size, format_seconds, named, one_line
from ddfs.control.messages import Problem, TemplateStatus
from ddfs.control.problems import error_of
from ddfs.model import SpoolState

# Quick enough for a bar to move, and for a small template not to wait for the next look.
LOOK_SECONDS: Final = 0.25

Show = Callable[[Sequence[TemplateStatus]], None]


class Templates(Protocol):
    """Who knows how far templates are."""

    def templates(self, names: Sequence[str]) -> list[TemplateStatus]:
        """The templates called *names*, in that order."""
        ...


def wait(
    client: Templates,
    found: Sequence[TemplateStatus],
    *,
    goes_on: bool = True,
    host: str | None = None,
) -> list[TemplateStatus]:
    """Returns when none of the templates *found* is being fetched, with their last states.

    Whoever interrupts it is told that the fetches go on without them, unless *goes_on* is
    false: then the caller ends them. *host* is where that is, None for this one.
    """
    names = [status.exact_name for status in found]
    looked = list(found)
    try:
        with _progress() as show:
            show(looked)
            while any(status.state == SpoolState.FETCHING.value for status in looked):
                time.sleep(LOOK_SECONDS)
                looked = client.templates(names)
                show(looked)
    except KeyboardInterrupt:
        if goes_on:
            plain = " ".join(status.typed_name for status in found)
            where, there = (f" on {host}", " there") if host is not None else ("", "")
            line = f"ddfs: the fetch goes on{where}; end it{there} with: ddfs cancel {plain}"
            print(line, file=sys.stderr)
        raise
    return looked


def describe(status: TemplateStatus) -> str:
    """One line on how it stands with a template."""
    size = format_image_size(status.size, status.packed_size, status.size_is_known)
    if status.state == SpoolState.PUBLISHED.value:
        return f"{status.file_name}: here, {size}, {status.published_path}"
    percent = 100 * status.bytes_here // status.size if status.size else 0
    text = f"{status.file_name}: {status.state}, {percent} % of {size} here"
    if status.seconds_left is not None:
        text += f", about {format_seconds(status.seconds_left)} left"
    if status.waits_for is not None:
        text += f", waits for {one_line(status.waits_for)} to fetch it"
    said = (status.last_error or "").removeprefix(f"{status.file_name}: ")
    return f"{text}; {said}" if said else text


def raise_if_missing(found: Sequence[TemplateStatus]) -> None:
    """Raises for templates that were waited for and are not here, with their reasons.

    What the first one failed with (:class:`~ddfs.errors.FetchRestingError` where that is not
    known any more), else :class:`~ddfs.errors.CancelledFetchError`.
    """
    failed = [status for status in found if status.state == SpoolState.FAILED.value]
    if failed:
        kind = failed[0].last_error_kind or errors.FetchRestingError.kind()
        raise error_of(Problem(kind, "; ".join(map(_reason, failed))))
    missing = [s.file_name for s in found if s.state != SpoolState.PUBLISHED.value]
    if missing:
        raise errors.CancelledFetchError(f"{', '.join(missing)}: the fetch was cancelled")


def _reason(status: TemplateStatus) -> str:
    reason = named(status.file_name, status.last_error or "the fetch failed")
    if status.retry_in is None:
        return reason
    return f"{reason} (tried again in {format_seconds(status.retry_in)})"


@contextlib.contextmanager
def _progress() -> Iterator[Show]:
    """What shows the state of templates on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from ddfs.cli.bars import bars

    with bars() as progress:
        tasks = {}

        def show(looked: Sequence[TemplateStatus]) -> None:
            for status in looked:
                if status.name not in tasks:
                    tasks[status.name] = progress.add(status.file_name, status.size)
                progress.update(
                    tasks[status.name],
                    status.bytes_here,
                    status.bytes_per_second,
                    status.seconds_left,
                    sum(mirror.state == "busy" for mirror in status.mirrors),
                    status.waits_for,
                )

        yield show
