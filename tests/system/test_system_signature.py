"""Images that a key has to have signed, by the signature in their metalink, in a real daemon."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lab.bootimage import MIB
from lab.host import Host
from lab.metalink import sha256_of
from lab.site import Published, Site

from tests.signature.openpgp import Signer

pytestmark = pytest.mark.system


def sign(site: Site, image: Published, signature: bytes) -> str:
    """Puts *signature* into the image's metalink; the address of that."""
    document = site.documents.root / Path(image.source).name
    element = f'<signature mediatype="application/pgp-signature">\n{signature.decode()}</signature>'
    document.write_text(document.read_text().replace("<url", f"{element}\n<url", 1))
    return image.source


def signed(site: Site, name: str, signer: Signer, *, seed: int) -> Published:
    image = site.publish(name, size=8 * MIB, seed=seed)
    sign(site, image, signer.detached(image.image.read_bytes(), armor=True))
    return image


def add(host: Host, name: str, source: str, signer: Signer | None = None) -> None:
    keyring = None if signer is None else str(signer.armored)
    host.api_json("POST", "/v1/templates", {"name": name, "source": source, "keyring": keyring})


def refused(done: subprocess.CompletedProcess[str], code: int, reason: str) -> None:
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert reason in done.stderr


def test_an_image_is_published_when_its_signature_holds(
    host: Host, fast_site: Site, signer: Signer, stranger: Signer
) -> None:
    image = signed(fast_site, "signed", signer, seed=31)
    ring = ("--keyring", signer.armored)
    host.ddfs("template", "add", "signed", image.source, *ring)
    # Its pieces are proved by hashes that nobody has vouched for.
    told = host.template("signed")
    assert (told["readable_early"], told["head_is_verified"], told["signed"]) == (
        False,
        False,
        True,
    )
    assert "not-downloaded, signed  " in host.ddfs("template", "list").stdout
    host.ddfs("prefetch", "signed")
    assert sha256_of(host.published("signed")) == image.sha256
    assert "good, of the whole file" in host.ddfs("template", "show", "signed").stdout
    exported = host.ddfs("template", "export").stdout
    assert f'keyring = "{signer.armored}"' in exported

    # By a key that is not in the ring: known before a byte is fetched.
    sent = image.bytes_sent()
    unknown = ("--keyring", stranger.keyring)
    done = host.ddfs("template", "add", "unknown", image.source, *unknown, check=False)
    refused(done, 3, f"no such key is in {stranger.keyring}")
    assert image.bytes_sent() == sent

    # Of other bytes than those whose hashes the document has.
    forged = fast_site.publish("forged", size=8 * MIB, seed=32)
    sign(fast_site, forged, signer.detached(image.image.read_bytes(), armor=True))
    add(host, "forged", forged.source, signer)
    refused(host.ddfs("prefetch", "forged", check=False), 3, "forged.qcow2: its signature is wrong")
    sent = forged.bytes_sent()
    # What is here is judged again when somebody asks, and not fetched again.
    refused(host.ddfs("prefetch", "forged", check=False), 3, "its signature is wrong")
    assert forged.bytes_sent() == sent
    assert not list(host.images.glob("forged*"))
    told = host.template("forged")
    assert (told["state"], told["retry_in"]) == ("error", None)
    file = {"path": str(host.templates / "forged.qcow2")}
    answer = host.api_json("POST", "/gate", {"domain": "vm", "files": [file]})
    assert not answer["allowed"]
    assert answer["message"].endswith("signed; mend that, then: ddfs prefetch forged@1")
    # Nobody reads it, verified piece or not.
    with pytest.raises(OSError):
        (host.templates / "forged.qcow2").read_bytes()
    assert forged.bytes_sent() == sent


V3 = """<?xml version="1.0"?><metalink version="3.0" xmlns="http://www.metalinker.org/"><files>
<file name="{name}"><verification><signature type="pgp">
{signature}</signature></verification>
<resources><url type="http">{url}</url></resources></file></files></metalink>"""


def test_what_is_here_is_judged_when_a_signature_is_asked_for(
    host: Host, fast_site: Site, signer: Signer, tmp_path: Path
) -> None:
    """And a signature alone, without any hash, in the words of version 3."""
    image = signed(fast_site, "later", signer, seed=33)
    forged = fast_site.publish("wrong", size=8 * MIB, seed=34)
    sign(fast_site, forged, signer.detached(b"else", armor=True))
    for name in ("later", "wrong"):
        add(host, name, {"later": image, "wrong": forged}[name].source)
    host.ddfs("prefetch", "later", "wrong")

    toml = tmp_path / "t.toml"
    table = '[template.{0}]\nsource = "{1}"\nkeyring = "{2}"\n'
    toml.write_text(table.format("later", image.source, signer.armored))
    for changed in (1, 0):
        assert f"{changed} changed, 0 failed" in host.ddfs("template", "apply", toml).stdout
        told = host.template("later")
        assert (told["signed"], told["state"]) == (True, "downloaded")
        assert not told["readable_early"]

    toml.write_text(table.format("wrong", forged.source, signer.armored))
    refused(host.ddfs("template", "apply", toml, check=False), 3, "its signature is wrong")
    ring = ("--keyring", signer.armored)
    for name in ("wrong", "other"):
        # Also under another name, while the name without keys stays what it is.
        done = host.ddfs("template", "add", name, forged.source, *ring, check=False)
        refused(done, 3, "its signature is wrong")
    assert not host.template("wrong")["signed"]

    # Asked for under one name, it holds for the file that both names have.
    add(host, "twice", image.source)
    assert not host.template("twice")["signed"]

    # No hash: the signature is all there is, and the first fetch pins what came.
    made = signer.detached(image.image.read_bytes(), armor=True).decode()
    url = fast_site.mirrors[0].url(image.image.name)
    bare = fast_site.documents.root / "bare.metalink"
    bare.write_text(V3.format(name=image.image.name, signature=made, url=url))
    source = fast_site.documents.url(bare.name)
    assert host.ddfs("template", "add", "bare", source, check=False).returncode == 3
    add(host, "bare", source, signer)
    host.ddfs("prefetch", "bare")
    told = host.template("bare")
    assert (told["signed"], told["unverified"], told["state"]) == (True, False, "downloaded")
    assert sha256_of(host.published("bare")) == image.sha256
    bare.write_text(
        V3.format(name=forged.image.name, signature=made, url=url.replace("later", "wrong"))
    )
    add(host, "barewrong", source, signer)
    refused(host.ddfs("prefetch", "barewrong", check=False), 3, "its signature is wrong")
    sent = forged.bytes_sent()
    with pytest.raises(OSError):
        (host.templates / "barewrong.qcow2").read_bytes()
    assert forged.bytes_sent() == sent

    # After a restart all of it still holds.
    host.stop()
    host.serve()
    told = host.template("later")
    assert (told["signed"], told["state"], told["readable_early"]) == (True, "downloaded", False)
