"""The guard around every FUSE handler.

pyfuse3 lets an exception that it does not know cancel its whole session: one bug in one
handler, and everybody's next call fails with ENOTCONN (``_session_loop`` in its
``__init__.pyx``). So no handler runs without :func:`guarded`.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3

log = logging.getLogger(__name__)


class Counted(Protocol):
    """What a handler's owner keeps for metrics."""

    # How many requests of each kind the kernel sent.
    requests: Counter[str]
    # How many of them ended in a bug of ours, by kind.
    crashes: Counter[str]


S = TypeVar("S", bound=Counted)
P = ParamSpec("P")
T = TypeVar("T")


def guarded(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """*handler*, counted, and with EIO instead of any exception but ``FUSEError``.

    Cancellation passes: it is how the session ends.
    """
    kind: str = handler.__name__

    @functools.wraps(handler)
    async def guarding(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.requests[kind] += 1
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception:
            self.crashes[kind] += 1
            log.exception("the handler of %s%s failed; its caller gets EIO", kind, _shown(args))
            raise pyfuse3.FUSEError(errno.EIO) from None

    return guarding


def _shown(arguments: tuple[Any, ...]) -> str:
    # Numbers and names only: contexts and tokens say nothing, and must not be kept alive.
    return repr(tuple(a for a in arguments if isinstance(a, int | bytes)))
