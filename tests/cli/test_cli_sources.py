"""`ddfs fetch` of images that a checksum file, a signature, their server or nothing verifies."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
import trio

from ddfs import errors
from tests.cli.conftest import Ddfs
from tests.cli.test_cli_fetch import serving
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.signature.openpgp import Signer

CONTENT = bytes(range(256)) * 2048
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_signed_checksum_file(
    ddfs: Ddfs, tmp_path: Path, settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = Signer(tmp_path / "keys")
    signer.close()
    sums = f"{SHA256}  a.img\n".encode()
    monkeypatch.chdir(tmp_path)
    files = {"/a.img": CONTENT, "/SHA256SUMS": sums, "/SHA256SUMS.gpg": signer.detached(sums)}
    signer.close()
    with serving(files) as base:
        done = ddfs("fetch", f"{base}/a.img", "--checksum-url", "SHA256SUMS", "-o", "one.img")
        assert (done.code, done.err) == (0, "")
        assert "verified by sha-256" in done.out
        ring = ("--checksum-url", "SHA256SUMS", "--keyring", "keys/keys.asc")
        done = ddfs("fetch", f"{base}/a.img", *ring, "-o", "two.img")
        assert (done.code, done.err) == (0, "")
        files["/SHA256SUMS"] = f"{'0' * 64}  a.img\n".encode()
        done = ddfs("fetch", f"{base}/a.img", *ring, "-o", "three.img")
        assert done.code == errors.EXIT_SOURCE
        assert done.err.endswith("its signature is wrong: it was changed after it was signed\n")
        # The keys of the settings are for what names a signature.
        settings_file.write_text(
            f'{settings_file.read_text()}\n[network]\nkeyring = "{tmp_path}/keys/keys.gpg"\n'
        )
        named = ("--checksum-url", "SHA256SUMS", "--signature", "SHA256SUMS.gpg")
        done = ddfs("fetch", f"{base}/a.img", *named, "-o", "four.img")
        assert done.err.endswith("its signature is wrong: it was changed after it was signed\n")
    assert Path("one.img").read_bytes() == Path("two.img").read_bytes() == CONTENT
    assert not Path("three.img").exists()
    assert not Path("four.img").exists()


METALINK = """<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="a.img">{hash}
<signature mediatype="application/pgp-signature">{made}</signature><url>{base}/a.img</url>
</file></metalink>"""


def test_the_signature_of_the_image_in_a_metalink(
    ddfs: Ddfs, tmp_path: Path, settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    signer = Signer(tmp_path / "keys")
    good, wrong = (signer.detached(data, armor=True).decode() for data in (CONTENT, b"else"))
    beside = signer.detached(CONTENT)
    signer.close()
    files = {"/a.img": CONTENT}
    ring = ("--keyring", "keys/keys.asc")
    hashed = f'<size>{len(CONTENT)}</size><hash type="sha-256">{SHA256}</hash>'
    with serving(files) as base:

        def publish(name: str, made: str, text: str = "") -> str:
            Path(name).write_text(METALINK.format(hash=text, made=made, base=base))
            return name

        done = ddfs("fetch", publish("good.meta4", good, hashed), *ring, "-o", "one.img")
        assert (done.code, done.err) == (0, "")
        assert "verified by sha-256, and signed" in done.out
        files["/a.img.sig"] = beside
        done = ddfs("fetch", f"{base}/a.img", *ring, "-o", "zero.img")
        assert (done.code, done.err, Path("zero.img").read_bytes()) == (0, "", CONTENT)
        assert "its signature is good" in done.out
        done = ddfs("fetch", publish("bare.meta4", good), *ring, "-o", "two.img")
        assert (done.code, done.err) == (0, "")
        assert "its signature is good" in done.out
        assert "--checksum" not in done.out
        publish("wrong.meta4", wrong, hashed)
        for _ in range(2):
            done = ddfs("fetch", "wrong.meta4", *ring, "-o", "three.img")
            assert done.code == errors.EXIT_SOURCE
            assert done.err.endswith(
                "a.img: its signature is wrong: it was changed after it was signed\n"
            )
            # What is here is judged again, and not fetched.
            files.pop("/a.img", None)
        # Without keys nobody is asked for; those of the settings count for all metalinks.
        files["/a.img"] = CONTENT
        assert ddfs("fetch", "wrong.meta4", "-o", "four.img").code == 0
        settings_file.write_text(
            f'{settings_file.read_text()}\n[network]\nkeyring = "{tmp_path}/keys/keys.gpg"\n'
        )
        assert ddfs("fetch", "wrong.meta4", "-o", "five.img").code == errors.EXIT_SOURCE
    assert Path("one.img").read_bytes() == Path("two.img").read_bytes() == CONTENT
    assert not Path("three.img").exists()
    assert not Path("five.img").exists()


def test_what_nothing_verifies(ddfs: Ddfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serving({"/a.img": CONTENT}) as base:
        done = ddfs("fetch", f"{base}/a.img")
        assert done.code == errors.EXIT_REQUEST
        assert "--unverified" in done.err
        done = ddfs("fetch", f"{base}/a.img", "--unverified")
        assert (done.code, done.err) == (0, "")
        assert "not verified by anything" in done.out
        assert f"It is sha-256:{SHA256}: next time say so with --checksum" in done.out
        done = ddfs("fetch", f"{base}/a.img", "--unverified", "--json", "-o", "b.img")
        last = json.loads(done.out.splitlines()[-1])
        assert (last["unverified"], last["pinned"]) == (True, f"sha-256:{SHA256}")
    assert Path("a.img").read_bytes() == CONTENT


def test_a_weak_hash_is_warned_of(
    ddfs: Ddfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    md5 = hashlib.md5(CONTENT).hexdigest()
    with serving({"/a.img": CONTENT}) as base:
        done = ddfs("fetch", f"{base}/a.img", "--checksum", f"{{MD5}}{md5}")
        assert done.code == 0
        assert done.err == "ddfs: warning: only md5 to verify it by, which can be forged\n"
        done = ddfs("fetch", f"{base}/a.img", "--checksum", f"{{SHA-256}}{SHA256}", "-o", "b")
        assert (done.code, done.err) == (0, "")


async def test_mirrors_and_hash_from_the_fields_of_the_origin(ddfs: Ddfs, tmp_path: Path) -> None:
    # A mirror that is told to be better takes its share, and the origin's word verifies it.
    async with MirrorLab() as lab:
        mirror = lab.mirror(CONTENT)
        origin = lab.mirror(CONTENT)
        value = hashlib.sha256(CONTENT).digest()

        lab[origin].fields = (
            f"Repr-Digest: sha-256=:{base64.b64encode(value).decode()}:",
            f"Link: <{mirror}>; rel=duplicate; pri=1; geo=de",
        )
        out = tmp_path / "a.img"
        done = await trio.to_thread.run_sync(ddfs, "fetch", origin, "-o", str(out))
        assert (done.code, done.err) == (0, "")
        assert out.read_bytes() == CONTENT
        assert lab[mirror].bytes_sent > 0
