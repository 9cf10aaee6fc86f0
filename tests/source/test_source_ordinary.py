"""Ordinary addresses: checksum files, signatures, and what servers say in their fields."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from ddfs import errors, signature, source
from ddfs.declaration import Declaration
from ddfs.model import Digest, HashAlgorithm, KiB, Manifest, is_unverified
from tests.signature.openpgp import Signer
from tests.source.source_web import CONTENT, MD5, OTHER, SHA256, Web, manifest, text

URL = "https://origin.example/12/latest/a.img"
SUMS = "https://origin.example/12/latest/SHA256SUMS"
META = "https://origin.example/12/latest/a.img.meta4"
SHA512 = Digest(HashAlgorithm.SHA512, hashlib.sha512(CONTENT).hexdigest())
FIELD = "SHA-256=" + base64.b64encode(bytes.fromhex(SHA256.hexdigest)).decode()


def site(**more: bytes) -> Web:
    web = Web()
    web.files[URL] = CONTENT
    web.files[SUMS] = f"{OTHER.hexdigest}  b.img\n{SHA256.hexdigest} *a.img\n".encode()
    web.files |= {f"https://origin.example/12/latest/{n}": data for n, data in more.items()}
    return web


async def resolve(web: Web, address: str = URL, **declared: Any) -> Manifest:
    return await source.resolve(Declaration(address, **declared), documents=web, location=None)


# -- checksum files


@pytest.mark.parametrize("where", [SUMS, "SHA256SUMS", "./SHA256SUMS", "/12/latest/SHA256SUMS"])
async def test_a_checksum_file_beside_the_image(where: str):
    web = site()
    found = await resolve(web, checksum_url=where)
    assert (found.digests, found.size, found.name) == ((SHA256,), len(CONTENT), "a.img")
    assert web.requests == [("document", SUMS), ("size", URL)]


async def test_a_checksum_file_of_this_host(tmp_path: Path):
    path = tmp_path / "MY SUMS"
    path.write_text(f"{SHA256.hexdigest}\n")
    declared = f"file://{tmp_path}/MY%20SUMS"
    assert (await resolve(site(), checksum_url=declared)).digests == (SHA256,)
    path.unlink()
    with pytest.raises(errors.RequestError, match="cannot be read: No such file"):
        await resolve(site(), checksum_url=declared)


async def test_the_name_in_the_checksum_file_can_be_told():
    web = site(sums=f"{SHA256.hexdigest}  debian-12.img\n".encode())
    with pytest.raises(errors.DocumentError, match=r"sums: it has no checksum of 'a\.img'"):
        await resolve(web, checksum_url="sums")
    assert (await resolve(web, checksum_url="sums", file="debian-12.img")).digests == (SHA256,)


async def test_checksum_and_checksum_file_must_agree():
    web = site(sums=f"{SHA512.hexdigest}  a.img\n".encode())
    found = await resolve(web, checksum_url="sums", checksum=SHA256)
    assert found.digests == (SHA512, SHA256)
    with pytest.raises(errors.DocumentError, match=r"the checksum file says .* --checksum says"):
        await resolve(web, checksum_url="SHA256SUMS", checksum=OTHER)


async def test_weak_hashes_are_noted():
    web = site(MD5SUMS=f"{MD5.hexdigest}  a.img\n".encode())
    found = await resolve(web, checksum_url="MD5SUMS")
    assert found.digests == (MD5,)
    assert "only md5" in found.notes[0]
    # A stronger one that is offered is used as well.
    web.headers[URL] = {"repr-digest": f"sha-256=:{FIELD.partition('=')[2]}:"}
    found = await resolve(web, checksum_url="MD5SUMS")
    assert (found.digests, found.notes) == ((SHA256, MD5), ())


async def test_a_metalink_and_a_checksum_file_must_agree():
    web = site()
    web.files[META] = text(manifest("m"))
    found = await resolve(web, META, checksum_url="SHA256SUMS")
    assert found.digests == (SHA256,)
    web.files[SUMS] = f"{OTHER.hexdigest}  a.img\n".encode()
    with pytest.raises(errors.DocumentError, match="the checksum file says"):
        await resolve(web, META, checksum_url="SHA256SUMS")


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"checksum_url": "missing"}, "404"),
        ({"checksum_url": "B2SUMS"}, "kind that is not known"),
        ({"checksum_url": "ftp://h.example/SUMS"}, "neither http nor https"),
        ({"checksum_url": "file://other.example/SUMS"}, "file of another host"),
        ({"signature": "SHA256SUMS.gpg"}, "proves nothing without the keys"),
        ({"keyring": "/keys", "checksum": SHA256}, "no signature is beside it"),
        ({"keyring": "/keys", "unverified": True}, "no signature is beside it"),
        ({"file": "b.img", "checksum": SHA256}, "this is neither"),
    ],
)
async def test_what_cannot_be(declared: dict[str, Any], reason: str):
    with pytest.raises(errors.DdfsError, match=reason) as caught:
        await resolve(site(), **declared)
    assert isinstance(caught.value, errors.RequestError | errors.SourceError)
    assert "\n" not in str(caught.value)


# -- signatures


async def test_a_signed_checksum_file(signer: Signer):
    web = site()
    made = signer.detached(web.files[SUMS])  # type: ignore[arg-type]
    web.files["https://origin.example/keys/sums.sig"] = made
    declared = {"checksum_url": "SHA256SUMS", "keyring": str(signer.keyring)}
    with pytest.raises(errors.DocumentError, match="it must be signed, since a keyring is given"):
        await resolve(web, **declared)
    assert (await resolve(web, **declared, signature="/keys/sums.sig")).digests == (SHA256,)
    # Beside it, it is found without being named.
    web.files[f"{SUMS}.sign"] = made
    assert (await resolve(web, **declared)).digests == (SHA256,)
    web.files[SUMS] = f"{OTHER.hexdigest}  a.img\n".encode()
    with pytest.raises(errors.DocumentError, match=r"SHA256SUMS: .*changed after it was signed"):
        await resolve(web, **declared)


async def test_the_keys_of_the_host_are_for_those_who_name_a_signature(signer: Signer):
    web = site()
    web.files[f"{SUMS}.gpg"] = signer.detached(b"else")
    for declared, is_checked in (
        (Declaration(URL, checksum_url=SUMS), False),
        (Declaration(URL, checksum_url=SUMS, signature="SHA256SUMS.gpg"), True),
    ):
        with pytest.MonkeyPatch.context():
            call = source.resolve(
                declared, documents=web, location=None, keyring=str(signer.keyring)
            )
            if is_checked:
                with pytest.raises(errors.DocumentError, match="changed after"):
                    await call
            else:
                assert (await call).digests == (SHA256,)


async def test_of_a_clear_signed_checksum_file_only_the_signed_text_counts(signer: Signer):
    good = signer.clear(f"SHA256 (a.img) = {SHA256.hexdigest}\n".encode())
    declared = {"checksum_url": "CHECKSUM", "keyring": str(signer.armored)}
    web = site(CHECKSUM=f"SHA256 (a.img) = {OTHER.hexdigest}\n".encode() + good)
    # What stands before it makes it an unsigned document, not a signed one.
    with pytest.raises(errors.DocumentError, match="must be signed"):
        await resolve(web, **declared)
    web = site(CHECKSUM=good + f"SHA512 (a.img) = {'0' * 128}\n".encode())
    assert (await resolve(web, **declared)).digests == (SHA256,)
    # Without keys its text is read, unchecked.
    assert (await resolve(web, checksum_url="CHECKSUM")).digests == (SHA256,)


async def test_a_signed_metalink(signer: Signer):
    web = site()
    document = text(manifest("m", piece_length=64 * KiB))
    web.files[META] = document
    declared = {"keyring": str(signer.keyring)}
    with pytest.raises(errors.DocumentError, match="must be signed"):
        await resolve(web, META, **declared)
    web.files[f"{META}.asc"] = signer.detached(document, armor=True)
    assert (await resolve(web, META, **declared)).is_readable_early
    web.files[META] = document.replace(b"m.example", b"n.example")
    with pytest.raises(errors.DocumentError, match=r"a\.img\.meta4: .*changed after"):
        await resolve(web, META, **declared)


def with_signature(document: bytes, made: bytes) -> bytes:
    element = b'<signature mediatype="application/pgp-signature">' + made + b"</signature>"
    return document.replace(b"<url", element + b"<url", 1)


async def test_the_signature_of_the_image_counts_where_nobody_signed_the_metalink(signer: Signer):
    web = site()
    document = text(manifest("m", piece_length=64 * KiB))
    made = signer.detached(CONTENT, armor=True)
    web.files[META] = with_signature(document, made)
    declared = {"keyring": str(signer.keyring)}
    found = await resolve(web, META, **declared)
    assert (found.signature, found.is_readable_early) == (made.decode().strip(), False)
    assert found.digests == (SHA256,)
    # Without keys nobody looks at it.
    found = await resolve(web, META)
    assert (found.signature, found.is_readable_early) == (None, True)
    # The keys of the host count where a metalink has a signature.
    found = await source.resolve(
        Declaration(META), documents=web, location=None, keyring=str(signer.keyring)
    )
    assert found.signature is not None
    found = await source.resolve(
        Declaration(META, no_keyring=True),
        documents=web,
        location=None,
        keyring=str(signer.keyring),
    )
    assert (found.signature, found.is_readable_early) == (None, True)
    # A signed metalink vouches for its hashes, and a signed checksum file for its own.
    web.files[f"{META}.asc"] = signer.detached(web.files[META])  # type: ignore[arg-type]
    found = await resolve(web, META, **declared)
    assert (found.signature, found.is_readable_early) == (None, True)
    web.files[f"{SUMS}.gpg"] = signer.detached(web.files[SUMS])  # type: ignore[arg-type]
    found = await resolve(web, META, checksum_url="SHA256SUMS", **declared)
    assert (found.signature, found.digests) == (None, (SHA256,))


async def test_an_image_with_its_signature_beside_it(signer: Signer):
    web = site()
    web.headers[URL] = {
        "digest": FIELD,
        "link": "<http://m1.example/a>; rel=duplicate",
        "etag": "1",
    }
    web.files[f"{URL}.sig"] = made = signer.detached(CONTENT)
    declared = {"keyring": str(signer.keyring)}
    found = await resolve(web, **declared)
    # What the server says unsigned counts for nothing, and neither do other mirrors.
    assert (found.digests, found.is_unpinned) == ((), True)
    assert [mirror.url for mirror in found.mirrors] == [URL]
    assert found.signature == signature.armored(made)
    checked = await resolve(web, **declared, checksum=SHA256)
    assert (checked.digests, checked.is_unpinned) == ((SHA256,), False)
    assert checked.signature == found.signature
    web.files["https://origin.example/keys/a.asc"] = signer.detached(CONTENT, armor=True)
    found = await resolve(web, **declared, signature="/keys/a.asc")
    assert found.signature != signature.armored(made)
    web.files[f"{URL}.sig"] = b"<html>"
    with pytest.raises(errors.DocumentError, match=r"'a.img': it has no good signature"):
        await resolve(web, **declared)


async def test_a_signature_that_no_bytes_can_make_good(signer: Signer):
    web = site()
    web.files[META] = with_signature(text(manifest("m")), b"no signature")
    with pytest.raises(errors.DocumentError, match=r"meta4: 'a.img': its signature is none"):
        await resolve(web, META, keyring=str(signer.keyring))
    with pytest.raises(errors.DocumentError, match="--no-keyring nobody asks who has signed it"):
        await source.resolve(
            Declaration(META), documents=web, location=None, keyring=str(signer.keyring)
        )


async def test_a_checksum_file_that_is_a_path_and_not_there_is_explained():
    web = site()
    hint = "a file of this host is written as file:///etc/SUMS"
    with pytest.raises(errors.MirrorError, match=hint):
        await resolve(web, checksum_url="/etc/SUMS")
    with pytest.raises(errors.MirrorError) as caught:
        await resolve(web, checksum_url="etc/SUMS")
    assert "file://" not in str(caught.value)


async def test_a_signature_without_any_hash_is_for_one_state_of_one_mirror(signer: Signer):
    web = site()
    bare = dataclasses.replace(manifest("gone", "m", "n"), digests=())
    web.files |= {"http://m.example/a": CONTENT[1:], "http://n.example/a": CONTENT}
    web.headers["http://n.example/a"] = {"etag": '"1"'}
    web.files[META] = with_signature(text(bare), signer.detached(CONTENT, armor=True))
    with pytest.raises(errors.DocumentError, match="no usable hash"):
        await resolve(web, META)
    found = await resolve(web, META, keyring=str(signer.keyring))
    assert [m.url for m in found.mirrors] == ["http://n.example/a"]
    assert (found.is_unpinned, found.size, found.size_is_stated) == (True, len(CONTENT), False)
    web.headers["http://n.example/a"] = {"etag": '"2"'}
    again = await resolve(web, META, keyring=str(signer.keyring))
    assert again.content_id != found.content_id
    del web.files["http://n.example/a"]
    with pytest.raises(errors.MirrorsExhaustedError, match="says 262143 bytes"):
        await resolve(web, META, keyring=str(signer.keyring))


async def test_nobody_vouches_for_the_pieces_of_a_metalink_beside_a_signed_checksum_file(
    signer: Signer,
):
    web = site()
    web.files[META] = text(manifest("m", piece_length=64 * KiB))
    web.files[f"{SUMS}.gpg"] = signer.detached(web.files[SUMS])  # type: ignore[arg-type]
    found = await resolve(web, META, checksum_url="SHA256SUMS", keyring=str(signer.keyring))
    assert (found.digests, found.pieces, found.is_readable_early) == ((SHA256,), None, False)


# -- Metalink/HTTP


async def test_hash_and_mirrors_from_the_fields_of_an_answer():
    web = site()
    web.headers[URL] = {
        "digest": FIELD,
        "link": "<http://m1.example/a>; rel=duplicate; pri=1; geo=de, </m2>; rel=duplicate",
    }
    found = await resolve(web)
    assert (found.digests, found.is_readable_early) == ((SHA256,), False)
    assert [m.url for m in found.mirrors] == [
        "http://m1.example/a",
        URL,
        "https://origin.example/m2",
    ]
    assert web.requests == [("size", URL)]


async def test_mirrors_count_only_where_a_hash_is_known():
    web = site()
    web.headers[URL] = {"link": "<http://m1.example/a>; rel=duplicate"}
    with pytest.raises(errors.RequestError, match="an image needs a hash"):
        await resolve(web)
    assert len((await resolve(web, checksum=SHA256)).mirrors) == 2
    # Nobody vouches for what another host has.
    assert len((await resolve(web, unverified=True)).mirrors) == 1


async def test_the_metalink_that_the_server_names_is_read():
    web = site()
    described = manifest("m1", "m2", piece_length=64 * KiB)
    web.files[META] = text(described)
    web.headers[URL] = {"link": '<a.img.meta4>; rel=describedby; type="application/metalink4+xml"'}
    found = await resolve(web)
    assert (found.pieces, found.digests) == (described.pieces, described.digests)
    assert [m.url for m in found.mirrors] == [*(m.url for m in described.mirrors), URL]
    assert found.is_readable_early
    # What contradicts the operator is passed over, and so is what cannot be had.
    for web.files[META] in (text(manifest("evil", content=CONTENT[::-1])), b"<x/>", "404"):
        found = await resolve(web, checksum=SHA256)
        assert (found.digests, len(found.mirrors)) == ((SHA256,), 1)
        assert found.notes[0].startswith("the metalink that its server names was passed over")


async def test_a_metalink_over_http_says_nothing_of_an_image_over_https():
    web = site()
    plain = META.replace("https:", "http:")
    web.files[plain] = text(manifest("m1"))
    field = f'<{plain}>; rel=describedby; type="application/metalink4+xml"'
    web.headers[URL] = {"link": field}
    with pytest.raises(errors.RequestError, match="an image needs a hash"):
        await resolve(web)
    assert ("document", plain) not in web.requests
    assert "leads from https to http" in (await resolve(web, checksum=SHA256)).notes[0]


async def test_the_fields_of_a_redirect_of_the_origin_count_and_those_of_a_mirror_do_not():
    web = Web()
    mirror = "http://mirror.example/a.img"
    web.redirects[URL] = mirror
    web.files[mirror] = CONTENT
    web.headers[mirror] = {
        "digest": FIELD.replace("=", "=AAAA"),
        "link": "<http://evil.example/a>; rel=duplicate",
    }
    with pytest.raises(errors.RequestError, match="an image needs a hash"):
        await resolve(web)
    web.headers[URL] = {"digest": FIELD}
    found = await resolve(web)
    assert (found.digests, len(found.mirrors)) == ((SHA256,), 1)


async def test_a_server_that_contradicts_the_operator_is_refused():
    web = site()
    web.headers[URL] = {"digest": FIELD}
    with pytest.raises(errors.DocumentError, match=r"its server says .* it may have changed"):
        await resolve(web, checksum=OTHER)


async def test_unsigned_hashes_count_for_nothing_beside_a_keyring(signer: Signer):
    web = site()
    web.files[f"{SUMS}.gpg"] = signer.detached(web.files[SUMS])  # type: ignore[arg-type]
    web.headers[URL] = {"digest": "SHA-512=" + base64.b64encode(bytes(64)).decode()}
    found = await resolve(web, checksum_url=SUMS, keyring=str(signer.keyring))
    assert found.digests == (SHA256,)


# -- unverified


async def test_unverified_is_bound_to_what_the_server_says_of_it():
    web = site()
    web.headers[URL] = {"last-modified": "Sun, 22 Nov 2026 00:00:00 GMT", "etag": '"1"'}
    first = await resolve(web, unverified=True)
    assert is_unverified(first.content_id)
    assert (first.digests, first.is_readable_early) == ((), False)
    assert first.notes[0].startswith("unverified")
    web.headers[URL]["etag"] = '"another server of the same site"'
    assert (await resolve(web, unverified=True)).content_id == first.content_id
    web.headers[URL]["last-modified"] = "Mon, 23 Nov 2026 00:00:00 GMT"
    assert (await resolve(web, unverified=True)).content_id != first.content_id
    del web.headers[URL]
    assert "does not say when it changes" in (await resolve(web, unverified=True)).notes[0]


async def test_files_of_one_unverified_archive_are_several_contents():
    web = site()
    url = "https://origin.example/disks.zip"
    web.files[url] = CONTENT
    names = [
        (await resolve(web, url, unverified=True, file=f)).content_id for f in (None, "a", "b")
    ]
    assert len(set(names)) == 3
    assert all(name.startswith(names[0]) for name in names)


async def test_what_is_offered_verifies_also_the_unverified():
    web = site()
    web.headers[URL] = {"digest": FIELD}
    assert (await resolve(web, unverified=True)).content_id == str(SHA256)


async def test_a_pinned_content_keeps_its_name():
    found = await resolve(site(), unverified=True)
    pinned = dataclasses.replace(found, digests=(SHA256,))
    assert pinned.content_id == found.content_id
