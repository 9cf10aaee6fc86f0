"""Checks of an image that only a typed checksum verifies, with what its server says of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from ddfs.declaration import Declaration
from ddfs.model import Digest, HashAlgorithm, ImageFormat, Manifest, Mirror, Template
from ddfs.templates.recorder import Resolved
from ddfs.templates.versions import Versions
from ddfs.versions import SourceState, Validator, Verdict, Visit

URL = "http://i.example/a.qcow2"
DIGEST = Digest(HashAlgorithm.SHA256, "0" * 64)
SIZE, PACKED = 5000, 1000
BEFORE = "Mon, 02 Nov 2026 10:00:00 GMT"
LATER = "Tue, 03 Nov 2026 10:00:00 GMT"


def template(**more: Any) -> Template:
    plain = {
        "row": 1, "name": "a", "format": ImageFormat.QCOW2, "content_id": str(DIGEST),
        "size": SIZE, "virtual_size": None, "source": URL, "added_at": 1.8e9,
        "head_is_verified": False, "is_readable_early": False,
    }  # fmt: skip
    return Template(**{**plain, **more})


class Server:
    """What templates, families and manifests are to a check: one name, one file on a server."""

    def __init__(self, one: Template, now: Validator) -> None:
        self.one, self.now = one, now
        self.source_states: dict[str, SourceState] = {}
        self.resolved: Resolved | None = None
        declared = Declaration(URL, checksum=DIGEST)
        self.declaration = lambda _: declared

    def newest(self, _name: str) -> Template:
        return self.one

    def versions(self, _family: str) -> Sequence[Template]:
        return [self.one]

    def manifest(self, _content_id: str) -> Manifest:
        return Manifest("a.qcow2", self.now.size, (DIGEST,), None, (Mirror(URL),))

    @asynccontextmanager
    async def changing(self, _family: str) -> AsyncIterator[None]:
        yield

    async def resolve(self, _declared: Declaration) -> Resolved:
        if self.resolved is not None:
            return self.resolved
        return Resolved(self.manifest(""), self, (self.now,), is_looked_at=True)  # type: ignore[arg-type]

    async def inquiry(self, _declared: Declaration) -> Server:
        return self

    async def revisit(self, before: Validator) -> Visit:
        return Visit(self.now, is_not_modified=bool(before.etag) and before.etag == self.now.etag)

    def record_state(self, name: str, state: SourceState) -> None:
        self.source_states[name] = state


async def verdict(server: Server, *seen: Validator) -> Verdict | None:
    limiter = trio.CapacityLimiter(1)
    versions = Versions(server, server, server, ledger_limiter=limiter)  # type: ignore[arg-type]
    server.source_states["a"] = SourceState(Verdict.UNCHANGED, seen=seen)
    found = [(await versions.check("a")).verdict for _ in range(2)]
    assert found[0] is found[1]
    return found[0]


SAME = Validator(URL, '"1"', BEFORE, SIZE)
OTHER = Validator(URL, '"2"', LATER, SIZE + 1)


@pytest.mark.parametrize("seen", [(), (SAME,), (replace(SAME, size=None),)])
async def test_what_is_there_has_the_size_of_the_template(seen: tuple[Validator, ...]) -> None:
    assert await verdict(Server(template(), SAME), *seen) is Verdict.UNCHANGED
    assert await verdict(Server(template(), OTHER), *seen) is Verdict.CHANGED


async def test_what_an_earlier_check_took_for_the_template_is_not_believed() -> None:
    # It was recorded, as unchanged, when another file was there already.
    assert await verdict(Server(template(), OTHER), OTHER) is Verdict.CHANGED
    # The publisher has put the first one back.
    assert await verdict(Server(template(), SAME), OTHER) is Verdict.UNCHANGED


async def test_of_a_packed_image_the_packed_file_is_there() -> None:
    packed = replace(SAME, size=PACKED)
    for seen in ((), (packed,)):
        server = Server(template(packed_size=PACKED), packed)
        assert await verdict(server, *seen) is Verdict.UNCHANGED
    assert await verdict(Server(template(packed_size=PACKED), SAME)) is Verdict.CHANGED


async def test_one_signature_is_of_one_file_whichever_mirror_has_it() -> None:
    signed = template(content_id="unverified:1", signature="SIG")
    for number, signature, expected in (
        (2, "SIG", Verdict.UNCHANGED),
        (1, "NEW", Verdict.UNCHANGED),
        (2, "NEW", Verdict.CHANGED),
    ):
        server = Server(signed, SAME)
        found = Manifest(
            "a", SIZE, (), None, (Mirror("http://other/"),),
            unverified_id=f"unverified:{number}", signature=signature,
        )  # fmt: skip
        seen = (replace(SAME, url="http://doc/", etag=None, last_modified=None),)
        server.resolved = Resolved(found, server, seen)  # type: ignore[arg-type]
        server.declaration = lambda _: Declaration(URL, keyring="/keys")
        assert await verdict(server) is expected
