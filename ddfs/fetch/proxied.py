"""The bulk through httpx, for where our own connections cannot go: behind a proxy."""

from __future__ import annotations

from functools import partial

import httpx
import trio

from ddfs.fetch.access import Terms
from ddfs.fetch.address import Address, AddressError, in_one_line
from ddfs.fetch.connection import ResponseHead
from ddfs.fetch.documents import Documents, body_of
from ddfs.fetch.mirrors import Failure, FailureKind
from ddfs.fetch.segment import (
    BUFFER_BYTES,
    MIN_ATTEMPT_BYTES,
    Broken,
    Done,
    Outcome,
    Segment,
)


async def attempt(
    documents: Documents,
    segment: Segment,
    address: Address,
    threads: trio.CapacityLimiter,
    terms: Terms,
) -> Outcome:
    """As :meth:`Segment.attempt`, in the event loop; hashing and writing run in a thread."""
    first, last = segment.position, segment.limit - 1
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={first}-{last}"}
    try:
        with trio.CancelScope() as scope, segment.aborting(scope.cancel):
            async with documents.exchange("GET", address, headers, terms) as response:
                refusal = segment.check(_head(response), first, last)
                if refusal is not None:
                    return refusal
                skip = first if response.status_code == 200 else 0
                pacer = segment.pace.pacer
                size = pacer.quantum if pacer.is_limited else BUFFER_BYTES
                async with body_of(response, response.aiter_raw(size)) as parts:
                    async for part in parts:
                        await _take(segment, memoryview(part)[skip:], threads)
                        skip = max(0, skip - len(part))
                        if pacer.is_limited:
                            await _pay(segment, len(part))
                        if segment.is_done:
                            break
        if segment.is_done or scope.cancelled_caught:
            return Done()
        message = "sent less than it was asked for"
    except AddressError as error:
        return Failure(FailureKind.FINAL, str(error))
    except httpx.HTTPError as error:
        message = in_one_line(error)
    if segment.position - first >= MIN_ATTEMPT_BYTES:
        return Broken(message)
    return Failure(FailureKind.TRANSIENT, message)


async def _take(segment: Segment, data: memoryview, threads: trio.CapacityLimiter) -> None:
    """Write *data*, as far as it is still wanted. Not cancelled in the middle."""
    data = data[: segment.claim(len(data))]
    try:
        if data:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(partial(segment.feed, data), limiter=threads)
    finally:
        segment.claim(0)


async def _pay(segment: Segment, count: int) -> None:
    """As :meth:`Segment.pay`, in the event loop; whoever aborts *segment* cancels it."""
    pacer = segment.pace.pacer
    ticket = pacer.ask(segment.pace.share, count)
    segment.is_held_back = True
    try:
        # The clock is what it waits for: no event comes from a bucket that fills.
        while seconds := pacer.seconds_until(ticket):  # noqa: ASYNC110
            await trio.sleep(seconds)
    finally:
        pacer.drop(ticket)
        segment.is_held_back = False


def _head(response: httpx.Response) -> ResponseHead:
    headers = {name.lower(): value for name, value in response.headers.items()}
    length = headers.get("content-length", "")
    is_chunked = "transfer-encoding" in headers
    known = int(length[:19]) if length.isdecimal() and not is_chunked else None
    return ResponseHead(response.status_code, headers, known, is_chunked)
