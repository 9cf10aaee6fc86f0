"""Files in primary storage that are damaged: found, named, and put right in place."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest
from lab.bootimage import MIB
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.processes import wait_until
from lab.site import Published, Site, site

pytestmark = pytest.mark.system


def damage(path: Path, *offsets: int) -> None:
    """Other bytes at *offsets*, as a disk that rots leaves them: the times stay."""
    before = path.stat()
    subprocess.run(["chattr", "-i", path], check=False, capture_output=True)
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(b"rotten")
        os.fsync(file.fileno())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_damage_is_named_and_only_it_is_fetched(host: Host, fast_site: Site) -> None:
    image = fast_site.publish("rotten", size=8 * MIB, seed=1)
    host.ddfs("template", "add", "rotten", image.source)
    host.ddfs("prefetch", "rotten")
    path = host.published("rotten")
    before = path.stat()
    assert "rotten: sound" in host.ddfs("template", "verify", "rotten").stdout

    damage(path, 2 * MIB + 5, 3 * MIB + 5, 6 * MIB)
    found = host.ddfs("template", "verify", "rotten", check=False)
    assert found.returncode == 4
    assert f"bytes {2 * MIB}-{4 * MIB - 1}, {6 * MIB}-{7 * MIB - 1} are damaged" in found.stdout
    earlier = [len(mirror.requests(image.image.name)) for mirror in fast_site.mirrors]
    # Who has it open, as a QEMU has, reads what is put right.
    with path.open("rb") as reader:
        repaired = host.ddfs("template", "verify", "rotten", "--repair", "--json")
        assert reader.read() == image.image.read_bytes()
    [told] = json.loads(repaired.stdout)
    assert (told["stage"], told["damaged"][1]["start"]) == ("repaired", 6 * MIB)
    # Not by counting bytes: a mirror has sent what is then taken from it for a faster one.
    asked = [
        request.range
        for mirror, count in zip(fast_site.mirrors, earlier, strict=True)
        for request in mirror.requests(image.image.name)[count:]
    ]
    assert asked
    for wanted in asked:
        first, last = (int(each) // MIB for each in wanted.removeprefix("bytes=").split("-"))
        assert {*range(first, last + 1)} <= {2, 3, 6}
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert oct(after.st_mode & 0o777) == "0o444"
    # It is still the file that was published, also for the next daemon.
    host.stop()
    host.serve()
    assert host.template("rotten")["state"] == "downloaded"
    assert "rotten: sound" in host.ddfs("template", "verify", "rotten").stdout


def without_pieces(site: Site, name: str, *, seed: int) -> Published:
    with_pieces = site.publish(name, size=8 * MIB, seed=seed)
    for mirror in site.mirrors:
        (mirror.root / with_pieces.image.name).unlink()
    return site.publish_file(with_pieces.image, piece_length=None)


def test_without_piece_hashes_our_own_tell_the_damage(host: Host, fast_site: Site) -> None:
    image = without_pieces(fast_site, "plain", seed=2)
    host.ddfs("template", "add", "plain", image.source)
    host.ddfs("prefetch", "plain")
    # The first verification of a sound file makes them.
    host.ddfs("template", "verify", "plain")
    path = host.published("plain")
    damage(path, 5 * MIB)
    found = host.ddfs("template", "verify", "plain", check=False)
    assert f"bytes {5 * MIB}-{6 * MIB - 1} are damaged" in found.stdout
    assert "plain: repaired" in host.ddfs("template", "verify", "plain", "--repair").stdout
    assert path.read_bytes() == image.image.read_bytes()


def test_nothing_told_the_damage_and_all_is_fetched(host: Host, fast_site: Site) -> None:
    image = without_pieces(fast_site, "unknown", seed=3)
    host.ddfs("template", "add", "unknown", image.source)
    host.ddfs("prefetch", "unknown")
    path = host.published("unknown")
    damage(path, 5 * MIB)
    found = host.ddfs("template", "verify", "unknown", check=False)
    assert (found.returncode, "cannot be told" in found.stdout) == (4, True)
    host.ddfs("template", "verify", "unknown", "--repair")
    assert path.read_bytes() == image.image.read_bytes()


def test_what_is_not_here_cannot_be_verified(host: Host, small: Published) -> None:
    host.ddfs("template", "add", "absent", small.source)
    refused = host.ddfs("template", "verify", "absent", check=False)
    assert (refused.returncode, "ddfs prefetch absent@1" in refused.stderr) == (5, True)


def test_a_repair_without_a_source_takes_what_another_version_has(
    host: Host, fast_site: Site
) -> None:
    old = fast_site.publish("lost", size=8 * MIB, seed=4)
    host.ddfs("template", "add", "lost", old.source)
    host.ddfs("prefetch", "lost")
    first = host.published("lost")
    right = first.read_bytes()
    # A newer version that differs in its last MiB alone; the old one is nowhere any more.
    data = bytearray(right)
    data[-MIB // 2 :] = os.urandom(MIB // 2)
    for place in (old.image, *(mirror.root / old.image.name for mirror in fast_site.mirrors)):
        place.unlink()
    old.image.write_bytes(data)
    newer = fast_site.publish_file(old.image)
    later = old.image.stat().st_mtime + 10
    os.utime(fast_site.documents.root / Path(newer.source).name, (later, later))
    host.ddfs("template", "update", "lost")
    host.ddfs("prefetch", "lost")
    damage(first, MIB + 7)
    assert "lost: repaired" in host.ddfs("template", "verify", "lost@1", "--repair").stdout
    assert first.read_bytes() == right


def test_what_was_unpacked_is_mended_from_its_packed_file(host: Host, fast_site: Site) -> None:
    image = fast_site.publish_raw("unpacked", size=4 * MIB, seed=6)
    packed = image.image.with_name("unpacked.img.gz")
    packed.write_bytes(gzip.compress(image.image.read_bytes(), 1))
    document = fast_site.publish_file(packed)
    host.ddfs("template", "add", "unpacked", document.source)
    host.ddfs("prefetch", "unpacked")
    path = host.published("unpacked")
    damage(path, MIB + 5)
    found = host.ddfs("template", "verify", "unpacked", check=False)
    assert (found.returncode, "ddfs template verify unpacked --repair" in found.stderr) == (4, True)
    repaired = host.ddfs("template", "verify", "unpacked", "--repair").stdout
    assert repaired.startswith("unpacked: repaired")
    assert path.read_bytes() == image.image.read_bytes()
    damage(path, 5)
    for mirror in fast_site.mirrors:
        (mirror.root / packed.name).unlink()
    gone = host.ddfs("template", "verify", "unpacked", "--repair", check=False)
    assert (gone.returncode, gone.stderr.count("\n")) == (3, 1)
    assert "nothing was changed" in gone.stderr


def test_what_is_repaired_is_not_deleted_meanwhile(
    host: Host, directory: Path, libvirtd: Libvirtd
) -> None:
    # Where it cannot be asked, nothing is deleted at all.
    libvirtd.virsh("list")
    with site(directory / "slow", [None]) as shop:
        image = shop.publish_raw("slow", size=2 * MIB, seed=7)
        packed = image.image.with_name("slow.img.gz")
        packed.write_bytes(gzip.compress(image.image.read_bytes(), 1))
        document = shop.publish_file(packed)
        host.ddfs("template", "add", "slow", document.source)
        host.ddfs("prefetch", "slow")
        path = host.published("slow")
        damage(path, MIB)
        shop.mirrors[0].pause()
        host.api_json("POST", "/v1/templates/slow/verify", {"repair": True})
        look = "/v1/templates/slow/verify"
        wait_until(lambda: host.api_json("GET", look)["stage"] == "repairing", "it is repaired")
        refused = host.ddfs("template", "remove", "slow", "--purge", check=False)
        assert refused.returncode == 2
        assert "being repaired" in refused.stderr
        shop.mirrors[0].resume()
        wait_until(lambda: host.api_json("GET", look)["stage"] == "repaired", "it was repaired")
        assert path.read_bytes() == image.image.read_bytes()
