"""gpgv against keys and signatures that gpg made."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from ddfs import errors, signature
from tests.signature.openpgp import Signer

DOCUMENT = b"- dash\nSHA256 (a.img) = 00\n"


@pytest.mark.parametrize("armor", [False, True])
async def test_a_detached_signature_by_a_key_of_the_ring(signer: Signer, armor: bool):
    made = signer.detached(DOCUMENT, armor=armor)
    by_binary = await signature.check_detached(DOCUMENT, made, str(signer.keyring))
    by_armored = await signature.check_detached(DOCUMENT, made, str(signer.armored))
    assert by_binary == by_armored
    assert len(by_binary) == 40


async def test_a_changed_document_is_refused(signer: Signer):
    made = signer.detached(DOCUMENT)
    with pytest.raises(errors.DocumentError, match="changed after it was signed"):
        await signature.check_detached(DOCUMENT + b"x", made, str(signer.keyring))


async def test_a_key_that_is_not_in_the_ring(signer: Signer, stranger: Signer):
    made = stranger.detached(DOCUMENT)
    with pytest.raises(errors.DocumentError, match="no such key is in"):
        await signature.check_detached(DOCUMENT, made, str(signer.keyring))
    # Beside a good one it does no harm: publishers change their keys so.
    both = made + signer.detached(DOCUMENT)
    assert await signature.check_detached(DOCUMENT, both, str(signer.keyring))
    # A wrong one does.
    both = signer.detached(b"else") + signer.detached(DOCUMENT)
    with pytest.raises(errors.DocumentError, match="changed after"):
        await signature.check_detached(DOCUMENT, both, str(signer.keyring))


async def test_clear_signed_gives_the_signed_text_alone(signer: Signer):
    made = signer.clear(DOCUMENT)
    around = b"SHA256 (evil) = 1\n" + made + b"SHA256 (evil) = 2\n"
    assert b"- - dash" in made
    assert await signature.signed_text(around, str(signer.keyring)) == DOCUMENT


async def test_two_clear_signed_texts_in_one_are_refused(signer: Signer):
    with pytest.raises(errors.DocumentError):
        await signature.signed_text(2 * signer.clear(DOCUMENT), str(signer.keyring))


async def test_a_changed_clear_signed_text_is_refused(signer: Signer):
    made = signer.clear(DOCUMENT).replace(b"= 00", b"= 01")
    with pytest.raises(errors.DocumentError, match="changed after"):
        await signature.signed_text(made, str(signer.keyring))


@pytest.mark.parametrize("made", [b"", b"no signature", b"\x88\x00", b"-----BEGIN PGP SIGNATURE"])
async def test_what_is_no_signature(signer: Signer, made: bytes):
    with pytest.raises(errors.DocumentError, match="no good signature") as caught:
        await signature.check_detached(DOCUMENT, made, str(signer.keyring))
    assert "\n" not in str(caught.value)


async def test_a_message_that_brings_its_own_text_is_no_detached_signature(signer: Signer):
    inline = signer.gpg("--sign", data=b"else")
    for made in (inline, signer.clear(b"else")):
        with pytest.raises(errors.DocumentError, match="no good signature"):
            await signature.check_detached(DOCUMENT, made, str(signer.keyring))


async def test_a_compressed_bomb_writes_no_more_than_the_document_has(signer: Signer):
    bomb = signer.gpg("--sign", "--compress-level", "9", data=bytes(4 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(errors.DocumentError):
        await signature.signed_text(bomb, str(signer.keyring))


async def test_an_expired_key_is_refused(tmp_path: Path):
    then = ("--faked-system-time", "20250101T000000")
    old = Signer(tmp_path / "old", expires="2025-06-01", options=then)
    try:
        made = old.detached(DOCUMENT)
        of_image = old.detached(DOCUMENT, armor=True).decode()
    finally:
        old.close()
    with pytest.raises(errors.DocumentError, match="has expired"):
        await signature.check_detached(DOCUMENT, made, str(old.keyring))
    image = tmp_path / "image"
    image.write_bytes(DOCUMENT)
    with pytest.raises(errors.SignatureError, match="has expired"):
        await signature.check_image(image, of_image, str(old.keyring))


# -- images


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "an image.qcow2"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


def armored(made: bytes) -> str:
    """As a document has it: indented."""
    return made.decode().replace("\n", "\n   ")


async def test_an_image_and_nothing_of_it_may_be_changed(signer: Signer, image: Path):
    made = armored(signer.detached(image.read_bytes(), armor=True))
    with image.open("rb") as opened:
        opened.read(100)
        by_descriptor = Path(f"/proc/self/fd/{opened.fileno()}")
        by_open = await signature.check_image(by_descriptor, made, str(signer.keyring))
    assert await signature.check_image(image, made, str(signer.armored)) == by_open
    with image.open("ab") as file:
        file.write(b"x")
    with pytest.raises(errors.SignatureError, match="changed after it was signed"):
        await signature.check_image(image, made, str(signer.keyring))


async def test_what_no_image_could_make_good_is_known_before(
    signer: Signer, stranger: Signer, image: Path
):
    other = armored(stranger.detached(image.read_bytes(), armor=True))
    for made, reason in (
        (other, "no such key is in"),
        ("", "is none"),
        ("-----BEGIN PGP SIGNATURE-----\n\n!\n-----END PGP SIGNATURE-----", "is none"),
        ("-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----", "no good signature"),
    ):
        with pytest.raises(errors.SignatureError, match=reason):
            await signature.check_image(image, made, str(signer.keyring))
        with pytest.raises(errors.DocumentError, match=reason):
            await signature.refuse_hopeless(made, str(signer.keyring))
    # Of whatever: only the bytes can tell. And publishers change their keys.
    made = armored(signer.detached(image.read_bytes(), armor=True))
    await signature.refuse_hopeless(made, str(signer.keyring))
    await signature.refuse_hopeless(other + made, str(signer.keyring))
    assert await signature.check_image(image, other + made, str(signer.keyring))


async def test_an_image_that_is_gone(signer: Signer, tmp_path: Path):
    made = armored(signer.detached(b"", armor=True))
    with pytest.raises(errors.StorageError, match="No such file"):
        await signature.check_image(tmp_path / "gone", made, str(signer.keyring))


async def test_judging_an_image_ends_when_it_is_cancelled(signer: Signer, tmp_path: Path):
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    made = armored(signer.detached(b"", armor=True))
    with trio.move_on_after(0.3) as scope:
        await signature.check_image(huge, made, str(signer.keyring))
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"hello", "no OpenPGP public keys"),
        (
            b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!\n-----END PGP PUBLIC KEY BLOCK-----\n",
            "armor is broken",
        ),
    ],
)
async def test_what_is_no_keyring(tmp_path: Path, content: bytes | None, reason: str):
    ring = tmp_path / "ring"
    if content is not None:
        ring.write_bytes(content)
    with pytest.raises(errors.RequestError, match=reason):
        await signature.check_detached(DOCUMENT, b"x", str(ring))


async def test_without_gpgv_it_says_what_to_install(
    signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "prlimit").symlink_to("/usr/bin/prlimit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.HostError, match="install it"):
        await signature.check_detached(DOCUMENT, b"x", str(signer.keyring))


async def test_nothing_is_left_behind(
    signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    await signature.signed_text(signer.clear(DOCUMENT), str(signer.keyring))
    assert list(tmp_path.iterdir()) == []
