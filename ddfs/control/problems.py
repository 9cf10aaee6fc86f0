"""Errors of the tree to what crosses the socket, and back.

A client sees the same class with the same text that the daemon raised, so that the command
line has one way to report both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ddfs import errors
from ddfs.control.messages import Problem

# The kind of a fault that nobody foresaw; its traceback is in the daemon's log.
INTERNAL: Final = "internal"


def problem_of(error: errors.DdfsError) -> Problem:
    """What the API says about *error*."""
    return Problem(error.kind(), str(error))


def error_of(problem: Problem) -> errors.DdfsError:
    """The error that *problem* was, with its class and its text.

    A kind that this version does not know, and ``internal``, become a plain
    :class:`~ddfs.errors.HostError`.
    """
    error_class = _classes().get(problem.kind, errors.HostError)
    if issubclass(error_class, errors.MirrorError):
        # Its text begins with the address, in which no space can be.
        url, _, message = problem.message.partition(": ")
        return error_class(url, message)
    return error_class(problem.message)


def _classes() -> dict[str, type[errors.DdfsError]]:
    return {found.kind(): found for found in _walk(errors.DdfsError)}


def _walk(error_class: type[errors.DdfsError]) -> Iterator[type[errors.DdfsError]]:
    for child in error_class.__subclasses__():
        yield child
        yield from _walk(child)
