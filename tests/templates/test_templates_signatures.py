"""Signatures of images on the way to primary storage: a real spool, real mirrors, a real gpgv."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.image.unpack import unpack
from ddfs.model import ByteRange, Digest, HashAlgorithm, Manifest, Packing, PackingKind
from ddfs.spool.fetching import Order
from ddfs.spool.rest import Demand
from ddfs.templates.signatures import Signatures
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.signature.openpgp import Signer
from tests.spool.test_spool_pin import unverified
from tests.spool.test_spool_spool import CONTENT, World, manifest_of, order_of, unlock, world
from tests.spool.test_spool_unpacking import Ledger

FIRST = ByteRange(5, 1000)


@dataclass
class Names:
    """What the names of the contents ask for, as the templates know it."""

    asked: dict[str, list[tuple[str | None, Declaration]]] = field(default_factory=dict)

    def of(self, content_id: str) -> Sequence[tuple[str | None, Declaration]]:
        return self.asked.get(content_id, [])


def names_for(host: World, signer: Signer) -> tuple[Names, Signatures]:
    names = Names()
    signatures = Signatures(host.spool, names.of, str(signer.keyring))
    host.spool.judge = signatures
    return names, signatures


def signed(signer: Signer, content: bytes) -> str:
    return signer.detached(content, armor=True).decode()


async def bind(host: World, names: Names, signatures: Signatures, manifest: Manifest) -> Order:
    """What registering does with a name."""
    order = host.knows(manifest, head_is_verified=False)
    async with signatures.binding(manifest, Declaration("x")):
        await trio.lowlevel.checkpoint()
        names.asked.setdefault(order.content_id, []).append((manifest.signature, Declaration("x")))
    return order


async def fetched(host: World, order: Order) -> Path:
    host.spool.demand(order, Demand.HAND)
    return Path((await host.spool.wait_published(order)).path)


async def test_nobody_reads_before_the_signature_was_judged(tmp_path: Path, signer: Signer) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        names, signatures = names_for(host, signer)
        url = lab.mirror(CONTENT, rate=4 << 20)
        plain = host.knows(manifest_of(CONTENT, [url]))
        with trio.fail_after(90):
            # A name without keys reads early; one with keys waits, in the same fetch.
            assert await host.spool.read(plain, FIRST) == CONTENT[5:1000]
            manifest = replace(manifest_of(CONTENT, [url]), signature=signed(signer, CONTENT))
            order = await bind(host, names, signatures, manifest)
            assert host.spool.is_fetching(order.content_id)
            assert await host.spool.read(order, FIRST) == CONTENT[5:1000]
            assert host.spool.published(order.content_id) is not None


async def test_what_is_not_signed_so_is_not_published_and_not_fetched_again(
    tmp_path: Path, signer: Signer
) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        names, signatures = names_for(host, signer)
        url = lab.mirror(CONTENT)
        manifest = replace(manifest_of(CONTENT, [url]), signature=signed(signer, b"else"))
        order = await bind(host, names, signatures, manifest)
        with trio.fail_after(90):
            for _ in range(2):
                with pytest.raises(errors.SignatureError, match="changed after it was signed"):
                    await fetched(host, order)
                sent = lab[url].bytes_sent
                with pytest.raises(errors.FetchRestingError, match="only with ddfs prefetch"):
                    await host.spool.read(order, FIRST)
                assert lab[url].bytes_sent == sent == len(CONTENT)
            assert not list(host.storage.path.glob("x@*"))
            # With another signature nobody has to wait, and nothing is fetched.
            names.asked[order.content_id] = [(signed(signer, CONTENT), Declaration("x"))]
            host.spool.forget_failure(order.content_id)
            assert await host.spool.read(order, FIRST) == CONTENT[5:1000]
            assert lab[url].bytes_sent == len(CONTENT)


async def test_what_is_published_is_judged_before_a_name_is_bound(
    tmp_path: Path, signer: Signer
) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        names, signatures = names_for(host, signer)
        plain = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        with trio.fail_after(90):
            path = await fetched(host, host.knows(plain))
            wrong = replace(plain, signature=signed(signer, b"else"))
            with pytest.raises(errors.SignatureError, match=f"^{path}: its signature is wrong"):
                await bind(host, names, signatures, wrong)
            assert not signatures.is_asked_for(plain.content_id)
            assert host.spool.published(plain.content_id) is not None
            await bind(host, names, signatures, replace(plain, signature=signed(signer, CONTENT)))
            # Also while other hosts may delete it: it may come back.
            assert host.spool.leaving.withhold(plain.content_id, "default", None, lambda _: None)
            with pytest.raises(errors.SignatureError, match="its signature is wrong"):
                await bind(host, names, signatures, wrong)
            await host.spool.leaving.give_back(plain.content_id, "default")
            # Deleted behind our back: it counts as not here, and what comes is judged.
            unlock(path)
            path.unlink()
            await bind(host, names, signatures, wrong)
            with pytest.raises(errors.SignatureError):
                await fetched(host, host.knows(plain))


async def test_a_file_that_has_the_name_already_is_judged(tmp_path: Path, signer: Signer) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        names, signatures = names_for(host, signer)
        url = lab.mirror(CONTENT)
        plain = manifest_of(CONTENT, [url])
        (host.storage.path / order_of(plain).published_name).write_bytes(CONTENT)
        wrong = replace(plain, signature=signed(signer, b"else"))
        order = await bind(host, names, signatures, wrong)
        with trio.fail_after(90):
            with pytest.raises(errors.SignatureError):
                await fetched(host, order)
            names.asked[order.content_id] = [(signed(signer, CONTENT), Declaration("x"))]
            assert (await fetched(host, order)).read_bytes() == CONTENT
        assert lab[url].bytes_sent == 0


async def test_what_is_here_unpacked_is_used_once_its_packed_file_was_judged(
    tmp_path: Path, signer: Signer
) -> None:
    data = zlib.compress(CONTENT, wbits=31)
    digest = Digest(HashAlgorithm.SHA256, hashlib.sha256(data).hexdigest())
    async with MirrorLab() as lab, world(tmp_path, ledger=Ledger()) as host:
        names, signatures = names_for(host, signer)
        host.spool._with = replace(host.spool._with, unpack=unpack)
        url = lab.mirror(data)
        manifest = replace(
            manifest_of(CONTENT, [url], with_pieces=False), size=len(data), digests=(digest,),
            packing=Packing(PackingKind.GZIP), signature=signed(signer, b"else"),
        )  # fmt: skip
        order = await bind(host, names, signatures, manifest)
        standing = host.storage.path / order.published_name
        standing.write_bytes(CONTENT)
        inode = standing.stat().st_ino
        with trio.fail_after(90):
            with pytest.raises(errors.SignatureError):
                await fetched(host, order)
            names.asked[order.content_id] = [(signed(signer, data), Declaration("x"))]
            assert (await fetched(host, order)).stat().st_ino == inode
        assert lab[url].bytes_sent == len(data)


async def test_a_name_that_is_bound_while_it_is_published_waits_and_is_judged(
    tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        names, signatures = names_for(host, signer)
        plain = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        judging, go_on = trio.Event(), trio.Event()
        judge = signatures.judge

        async def slow(content_id: str, image: Path) -> None:
            await judge(content_id, image)
            judging.set()
            await go_on.wait()

        monkeypatch.setattr(signatures, "judge", slow)
        host.spool.demand(host.knows(plain))
        with trio.fail_after(90):
            await judging.wait()
            wrong = replace(plain, signature=signed(signer, b"else"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_refused, host, names, signatures, wrong)
                await trio.sleep(0.1)
                assert host.spool.published(plain.content_id) is None
                go_on.set()
        assert host.spool.published(plain.content_id) is not None


async def _refused(host: World, names: Names, signatures: Signatures, wrong: Manifest) -> None:
    with pytest.raises(errors.SignatureError, match="changed after"):
        await bind(host, names, signatures, wrong)


async def test_without_any_hash_what_is_not_signed_is_not_pinned(
    tmp_path: Path, signer: Signer
) -> None:
    content = bytes(range(256)) * (12 << 10)  # what unverified() is of
    async with MirrorLab() as lab, world(tmp_path) as host:
        names, signatures = names_for(host, signer)
        url = lab.mirror(content)
        manifest = replace(unverified(url), signature=signed(signer, b"else"))
        order = await bind(host, names, signatures, manifest)
        with trio.fail_after(90):
            with pytest.raises(errors.SignatureError):
                await fetched(host, order)
            assert host.ledger.manifests[order.content_id].is_unpinned
            sent = lab[url].bytes_sent
            with pytest.raises(errors.FetchRestingError):
                await host.spool.read(order, FIRST)
            assert lab[url].bytes_sent == sent
            names.asked[order.content_id] = [(signed(signer, content), Declaration("x"))]
            await fetched(host, order)
        assert not host.ledger.manifests[order.content_id].is_unpinned


async def test_keys_that_are_gone_are_said_so(tmp_path: Path, signer: Signer) -> None:
    async with MirrorLab() as lab, world(tmp_path) as host:
        names = Names()
        signatures = Signatures(host.spool, names.of, None)
        host.spool.judge = signatures
        manifest = manifest_of(CONTENT, [lab.mirror(CONTENT)])
        order = await bind(host, names, signatures, replace(manifest, signature="SIG"))
        with trio.fail_after(90), pytest.raises(errors.SignatureError, match="no keys any more"):
            await fetched(host, order)
