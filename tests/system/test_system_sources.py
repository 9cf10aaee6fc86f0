"""What verifies a template, in a running daemon with real servers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lab.host import Host
from lab.metalink import sha256_of
from lab.site import Published, Site

from tests.signature.openpgp import Signer


def test_a_signed_checksum_file_and_a_content_that_its_first_fetch_binds(
    host: Host, fast_site: Site, small: Published, tmp_path: Path
) -> None:
    mirror, name = fast_site.mirrors[0], small.image.name
    address = mirror.url(name)
    served = mirror.root / name

    # Signed: the checksum file beside the image, by its name.
    signer = Signer(tmp_path / "signer")
    try:
        sums = signer.clear(f"SHA256 ({name}) = {small.sha256}\n".encode())
    finally:
        signer.close()
    (mirror.root / "CHECKSUM").write_bytes(sums)
    signed = ("--checksum-url", "CHECKSUM", "--keyring", signer.armored)
    host.ddfs("template", "add", "signed", address, *signed)
    assert host.template("signed")["content_id"] == f"sha-256:{small.sha256}"
    (mirror.root / "CHECKSUM").write_bytes(sums.replace(b") = ", b") =  "))
    refused = host.ddfs("template", "add", "forged", address, *signed, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert "changed after it was signed" in refused.stderr

    # Unverified: the first fetch binds the content, for every name and over a restart.
    assert host.ddfs("template", "add", "plain", address, check=False).returncode == 2
    added = host.ddfs("template", "add", "plain", address, "--unverified")
    assert added.stderr.startswith("ddfs: warning: nothing verifies it")
    assert "unverified" in host.ddfs("template", "list").stdout
    host.ddfs("prefetch", "plain")
    assert sha256_of(host.published("plain")) == small.sha256
    host.stop()
    host.serve()
    host.ddfs("template", "add", "again", address, "--unverified")
    assert host.template("again")["state"] == "downloaded"

    # The publisher changes the bytes: that is other content, and no more of the old one.
    before = served.stat()
    changed = bytearray(served.read_bytes())
    changed[-1] ^= 1
    beside = served.with_suffix(".new")
    beside.write_bytes(changed)
    os.utime(beside, ns=(before.st_atime_ns, before.st_mtime_ns + 5 * 10**9))
    beside.rename(served)
    assert host.ddfs("template", "check", "plain", check=False).returncode == 6
    host.ddfs("template", "update", "plain")
    host.ddfs("prefetch", "plain")
    assert sha256_of(host.published("plain")) != small.sha256
    assert sha256_of(host.published("again")) == small.sha256
    # The signed template has other bytes than its source by now, and they are here.
    host.ddfs("prefetch", "signed")
    assert sha256_of(host.published("signed")) == small.sha256


@pytest.mark.parametrize("claim", ["--format=iso", "name"])
def test_what_an_image_claims_must_agree_with_its_bytes(
    host: Host, fast_site: Site, small: Published, claim: str
) -> None:
    mirror = fast_site.mirrors[0]
    (mirror.root / "small.iso").write_bytes(small.image.read_bytes())
    address = mirror.url("small.iso" if claim == "name" else small.image.name)
    more = (claim,) if claim != "name" else ()
    checksum = ("--checksum", f"sha256:{small.sha256}")
    done = host.ddfs("template", "add", "x", address, *checksum, *more, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "it is qcow2, not iso" in done.stderr
    assert ("--format" in done.stderr) == (claim == "name")
    host.ddfs("template", "add", "x", address, *checksum, "--format", "qcow2")

    # What no name could make right is not blamed on the name.
    based = mirror.root / "based.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname"]
    subprocess.run([*command, based, "1M"], check=True)
    checksum = ("--checksum", f"sha256:{sha256_of(based)}")
    done = host.ddfs("template", "add", "y", mirror.url(based.name), *checksum, check=False)
    assert (done.returncode, "a backing file" in done.stderr) == (3, True)
    assert "--format" not in done.stderr
