"""Sources that change under a running daemon: checks, new versions, and what stays."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from lab.bootimage import MIB
from lab.host import Host
from lab.processes import wait_until
from lab.site import Published, Site

pytestmark = pytest.mark.system


def publish_newer(site: Site, image: Published, *, seed: int) -> Published:
    """Other bytes at the address of *image*, on all mirrors; the publisher's clock has moved."""
    size = image.size
    for path in (image.image, *(mirror.root / image.image.name for mirror in site.mirrors)):
        path.unlink()
    newer = site.publish(image.image.stem, size=size, seed=seed)
    # Servers tell by the second; this test is faster.
    later = time.time() + 10
    os.utime(site.documents.root / Path(newer.source).name, (later, later))
    return newer


def test_a_check_costs_a_304_and_a_change_makes_a_version(host: Host, fast_site: Site) -> None:
    old = fast_site.publish("rolling", size=4 * MIB, seed=1)
    first = old.image.read_bytes()
    host.ddfs("template", "add", "rolling", old.source)
    # Registering takes the piece under the head, from one mirror.
    wait_until(old.requests, "it is logged")
    assert (old.requests(), old.bytes_sent()) == (1, MIB)
    document = Path(old.source).name
    checked = host.ddfs("template", "check", "rolling")
    assert checked.stdout == "rolling: unchanged\n"
    # The log is written when an answer has ended.
    wait_until(lambda: len(fast_site.documents.requests(document)) == 2, "the check is logged")
    registered, asked = fast_site.documents.requests(document)
    assert (registered.status, asked.status, asked.bytes_sent) == (200, 304, 0)
    host.ddfs("prefetch", "rolling")

    publish_newer(fast_site, old, seed=2)
    changed = host.ddfs("template", "check", "rolling", check=False)
    assert (changed.returncode, "newer version" in changed.stdout) == (6, True)
    assert host.template("rolling")["source_verdict"] == "changed"
    assert " at source " in host.ddfs("template", "list").stdout
    assert 'ddfs_source_changed{template="rolling"} 1.0' in host.api("GET", "/metrics")[1].decode()
    # Asked again, it is known: no document is read.
    assert host.ddfs("template", "check", check=False).returncode == 6

    both = [
        threading.Thread(target=host.ddfs, args=("template", "update", "rolling")) for _ in "ab"
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    names = [t["name"] for t in json.loads(host.api("GET", "/v1/templates")[1])]
    assert names == ["rolling", "rolling@2"]
    assert host.template("rolling")["name"] == "rolling@2"
    assert "unchanged" in host.ddfs("template", "update", "--all").stdout
    assert host.ddfs("template", "check").returncode == 0

    host.ddfs("prefetch", "rolling")
    second = (host.templates / "rolling@2.qcow2").read_bytes()
    assert second == old.image.read_bytes() != first
    assert (host.templates / "rolling.qcow2").read_bytes() == first


def test_which_version_is_removed_has_to_be_said(host: Host, fast_site: Site) -> None:
    old = fast_site.publish("said", size=2 * MIB, seed=1)
    host.ddfs("template", "add", "said", old.source)
    publish_newer(fast_site, old, seed=2)
    host.ddfs("template", "update", "said")
    refused = host.ddfs("template", "remove", "said", check=False)
    assert (refused.returncode, "said@1, said@2" in refused.stderr) == (2, True)
    host.ddfs("template", "remove", "said@2")
    assert host.template("said")["name"] == "said"
    # The number of a version never comes back, nor does a name get other bytes.
    taken = host.ddfs("template", "add", "said", old.source, check=False)
    assert (taken.returncode, "template update said" in taken.stderr) == (2, True)
    host.ddfs("template", "update", "said")
    assert host.template("said")["name"] == "said@3"
    host.ddfs("template", "remove", "said.qcow2")
    assert "said@3: removed" in host.ddfs("template", "remove", "said", "--all-versions").stdout


def test_a_fetch_that_meets_the_change_says_so(host: Host, fast_site: Site) -> None:
    old = fast_site.publish("midway", size=4 * MIB, seed=1)
    host.ddfs("template", "add", "midway", old.source)
    publish_newer(fast_site, old, seed=2)
    failed = host.ddfs("prefetch", "midway", check=False)
    assert failed.returncode == 3
    assert "the source seems to have changed; see: ddfs template update midway" in failed.stderr
    host.ddfs("template", "update", "midway")
    host.ddfs("prefetch", "midway")
    assert host.template("midway@1")["state"] == "error"
    assert host.template("midway@2")["state"] == "downloaded"


def test_a_typed_checksum_does_not_hide_that_the_file_is_another_one(
    host: Host, fast_site: Site
) -> None:
    old = fast_site.publish("typed", size=2 * MIB, seed=1)
    mirror, name = fast_site.mirrors[0], old.image.name
    host.ddfs("template", "add", "typed", mirror.url(name), "--checksum", f"sha256:{old.sha256}")
    for _ in range(2):
        assert host.ddfs("template", "check", "typed").stdout == "typed: unchanged\n"
    newer = publish_newer(fast_site, old, seed=2)
    later = time.time() + 10
    os.utime(mirror.root / name, (later, later))
    for _ in range(2):
        changed = host.ddfs("template", "check", "typed", check=False)
        assert (changed.returncode, "--checksum ALG:HEX" in changed.stdout) == (6, True)
    # Without the new checksum there is nothing to make a version of, and that stays known.
    refused = host.ddfs("template", "update", "typed", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert host.template("typed")["source_verdict"] == "changed"
    host.ddfs("template", "update", "typed", "--checksum", f"sha256:{newer.sha256}")
    host.ddfs("prefetch", "typed")
    assert host.published("typed@2").read_bytes() == newer.image.read_bytes()
    assert host.ddfs("template", "check", "typed").stdout == "typed: unchanged\n"


def test_a_source_that_is_gone_is_no_change(host: Host, fast_site: Site) -> None:
    image = fast_site.publish("leaving", size=2 * MIB)
    host.ddfs("template", "add", "leaving", image.source)
    (fast_site.documents.root / Path(image.source).name).unlink()
    gone = host.ddfs("template", "check", "leaving", check=False)
    assert (gone.returncode, "cannot be asked" in gone.stdout) == (3, True)
    assert host.template("leaving")["source_verdict"] == "cannot be asked"
    host.ddfs("prefetch", "leaving")


def test_a_source_is_checked_by_itself(host: Host, fast_site: Site, directory: Path) -> None:
    old = fast_site.publish("daily", size=2 * MIB, seed=1)
    file = directory / "daily.toml"
    file.write_text(
        f'[template.daily]\nsource = "{old.source}"\ncheck_every = "1d"\n'
        f'[template.weekly]\nsource = "{old.source}"\ncheck_every = "1w"\n'
        f'[template.never]\nsource = "{old.source}"\n'
    )
    host.ddfs("template", "apply", file)
    newer = publish_newer(fast_site, old, seed=2)

    def two_days_pass() -> None:
        host.stop()
        with contextlib.closing(sqlite3.connect(host.state / "catalogue.db")) as catalogue:
            catalogue.execute("UPDATE template SET added_at = added_at - 172800")
            catalogue.execute("UPDATE family SET checked_at = checked_at - 172800")
            catalogue.commit()
        host.serve()

    two_days_pass()
    wait_until(lambda: host.template("daily")["source_verdict"] == "changed", "it is noticed")
    assert [host.template(name)["source_verdict"] for name in ("weekly", "never")] == [None, None]
    said = "template update daily"
    assert said in host.ddfs("status", "daily").stdout
    assert "list: 1\n" in host.ddfs("status").stdout
    assert said in host.log.read_text()
    (line,) = [
        x for x in host.ddfs("template", "list").stdout.splitlines() if x.startswith("daily ")
    ]
    assert " at source" in line
    host.ddfs("template", "update", "daily")
    host.ddfs("prefetch", "daily")
    assert host.published("daily@2").read_bytes() == newer.image.read_bytes()

    # The next day the new version is compared.
    before = time.time()
    two_days_pass()
    wait_until(lambda: host.template("daily")["checked_at"] > before, "it is asked again")
    assert host.template("daily")["source_verdict"] == "unchanged"


def test_a_catalogue_is_made_like_a_file_and_back(
    host: Host, fast_site: Site, directory: Path
) -> None:
    images = [fast_site.publish(f"many{n}", size=MIB, seed=n) for n in range(3)]
    file = directory / "templates.d" / "all.toml"
    file.parent.mkdir()
    tables = [f'[template.many{n}]\nsource = "{i.source}"\n' for n, i in enumerate(images)]
    gone = fast_site.documents.url("gone.meta4")
    file.write_text("".join(tables) + f'[template.gone]\nsource = "{gone}"\n')
    diff = host.ddfs("template", "apply", "--diff", file.parent, check=False)
    assert (diff.returncode, diff.stdout.count("\n+ ") + 1) == (6, 4)
    assert json.loads(host.api("GET", "/v1/templates")[1]) == []
    # One bad source does not stop the others.
    applied = host.ddfs("template", "apply", file, check=False)
    assert (applied.returncode, "3 changed, 1 failed" in applied.stdout) == (3, True)
    assert "gone: " in applied.stderr

    file.write_text("".join(tables))
    assert host.ddfs("template", "apply", file).stdout == "0 changed, 0 failed\n"
    exported = directory / "exported.toml"
    exported.write_text(host.ddfs("template", "export").stdout)
    assert host.ddfs("template", "apply", "--diff", exported).stdout == ""

    # Other words about the same content make no version; other content does.
    file.write_text(
        tables[0] + 'check_every = "1d"\n' + tables[1].replace("many1.meta", "many2.meta")
    )
    host.ddfs("template", "apply", "--prune", file)
    names = [t["name"] for t in json.loads(host.api("GET", "/v1/templates")[1])]
    assert names == ["many0", "many1", "many1@2"]
    assert host.template("many0")["check_every"] == 86400

    file.write_text("[template.many0]\nsorce = 3\n[template.x]\n")
    wrong = host.ddfs("template", "apply", file, check=False)
    assert wrong.returncode == 2
    assert f"{file}:2: template.many0.sorce: unknown key" in wrong.stderr
    assert "3 mistakes in the files; nothing was changed" in wrong.stderr
