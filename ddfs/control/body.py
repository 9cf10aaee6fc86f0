"""ASGI middleware around the API: bounds request bodies, and catches what nobody foresaw."""

from __future__ import annotations

import json
import logging
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddfs import errors
from ddfs.control import problems
from ddfs.control.messages import Problem

log = logging.getLogger(__name__)

# A gate question for 1,000 files with paths of 4,096 bytes has 4 MiB; nothing else that is
# sent here comes near. The hook reads at most 16 MiB of XML, of which paths are a part.
MAX_BODY_BYTES: Final = 8 * 1024 * 1024


class BodyLimit:
    """Reads the whole body, up to :data:`MAX_BODY_BYTES`, before the application runs.

    Any other exception than those that the application answers itself is logged with its
    traceback and answered with status 500 and the kind ``internal``. Within Starlette, an
    exception that leaves the application would be raised on after the answer, and be
    logged twice.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Everything that is sent here is JSON; `curl --data` calls it a form.
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope = {**scope, "headers": headers}
        answer = _Answer(send)
        try:
            body = await _read_body(receive)
            if body is not None:
                await self._app(scope, _Replay(body, receive), answer.send)
        except errors.InvalidValueError as error:
            await answer.problem(error.http_status, problems.problem_of(error))
        except Exception as error:
            log.exception("%s %s: unexpected error", scope["method"], scope["path"])
            text = f"unexpected {type(error).__name__}: the daemon's log says more"
            await answer.problem(500, Problem(problems.INTERNAL, text))


async def _read_body(receive: Receive) -> bytes | None:
    """The body; None if the caller hung up before its end.

    One that is too large is read to its end and thrown away: a client that is still sending
    when the connection is closed never sees the answer.
    """
    body = bytearray()
    is_too_large = False
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if not is_too_large:
            body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            is_too_large = True
            body.clear()
        if not message.get("more_body", False):
            break
    if is_too_large:
        raise errors.InvalidValueError(f"the request has more than {MAX_BODY_BYTES} bytes")
    return bytes(body)


class _Replay:
    """Gives a body that was read to an application that wants to read it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Answer:
    """Remembers whether an answer has begun: only then is there none to give any more."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False

    async def send(self, message: Message) -> None:
        self._has_begun = True
        await self._send(message)

    async def problem(self, status: int, problem: Problem) -> None:
        if self._has_begun:
            return
        body = json.dumps({"kind": problem.kind, "message": problem.message}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
