"""contrib/bench many: 10,000 templates in the catalogue, none of them here."""

from __future__ import annotations

import argparse
import hashlib
import os
import sqlite3
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from lab.bootimage import SECTOR, boot_sector
from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.many import register_many
from lab.processes import LabError
from lab.site import site

from ddfs.catalogue.catalogue import FILE_NAME, Catalogue
from ddfs.catalogue.heads import HeadStore
from ddfs.declaration import Declaration
from ddfs.model import Digest, HashAlgorithm, ImageFormat, Manifest, MiB, Mirror, PieceMap

COUNT: Final = 10_000
ADDED: Final = 100
MIRRORS: Final = 4
PIECES: Final = 256
HEAD_BYTES: Final = 64 * 1024
RUNS: Final = 3

READY_SECONDS: Final = 3.0
RESIDENT_MIB: Final = 180
LISTING_SECONDS: Final = 1.0
STATUS_SECONDS: Final = 0.5
VOLUMES_SECONDS: Final = 2.0

# Longer than the keeper of the pool waits before it lets libvirt look again.
AFTER_SECONDS: Final = 10.0


def run(directory: Path, arguments: Sequence[str]) -> bool:
    """Whether every bar was reached."""
    parser = argparse.ArgumentParser(prog="contrib/bench many", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="how many templates")
    parser.add_argument("--no-libvirt", action="store_true", help="the daemon and its mount alone")
    parser.add_argument(
        "--unverified", action="store_true", help="templates without piece hashes, not added ones"
    )
    wanted = parser.parse_args(arguments)
    with Host(directory / "host") as host:
        _fill(host.state, wanted.count, are_verified=not wanted.unverified)
        reached = _daemon(host, wanted.count)
        if not wanted.no_libvirt:
            with (
                Libvirtd(directory) as libvirtd,
                site(directory / "site", [None]) as shop,
            ):
                plain = _plain(directory / "plain", wanted.count)
                reached.append(
                    _volumes(host, libvirtd, plain, lambda: register_many(host, shop, ADDED))
                )
                reached.append(_resident(host, "resident after that"))
    return all(reached)


def _fill(state: Path, count: int, *, are_verified: bool) -> None:
    """The catalogue and the heads as registering would leave them, without the waiting."""
    Catalogue.open(state).close()
    _add_first(state, is_verified=are_verified)
    heads = HeadStore(state).directory
    names = [_manifest(number).content_id for number in range(count)]
    for number, content_id in enumerate(names):
        head = boot_sector(f"m{number}") + Random(number).randbytes(HEAD_BYTES - SECTOR)
        (heads / f"{content_id.replace(':', '-')}.head").write_bytes(head)
    _copy_first(state / FILE_NAME, names)


def _copy_first(path: Path, names: Sequence[str]) -> None:
    """All other rows are copies of the first template's; one transaction instead of thousands."""
    with sqlite3.connect(path) as database:
        for table in ("content", "mirror", "template", "family"):
            key = "name" if table == "family" else "content_id"
            rows = database.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in rows.description]
            first = [dict(zip(columns, row, strict=True)) for row in rows]
            copies = [
                _renamed(row, number, names[number], key)
                for number in range(1, len(names))
                for row in first
            ]
            marks = ", ".join("?" * len(columns))
            database.executemany(f"INSERT INTO {table} VALUES ({marks})", copies)
    database.close()


def _renamed(row: dict[str, object], number: int, content_id: str, key: str) -> list[object]:
    changed = {**row, key: content_id if key == "content_id" else f"m{number:05}"}
    if "row" in changed:
        changed |= {"row": number + 1, "name": f"m{number:05}"}
    return list(changed.values())


def _add_first(state: Path, *, is_verified: bool) -> None:
    catalogue = Catalogue.open(state)
    declaration = Declaration("https://images.example.org/m.meta4")
    catalogue.add_template(
        name="m00000",
        format=ImageFormat.RAW,
        manifest=_manifest(0),
        declaration=declaration,
        virtual_size=PIECES * MiB,
        added_at=1.7e9,
        head_is_verified=is_verified,
    )
    catalogue.close()


def _manifest(number: int) -> Manifest:
    digest = Digest(HashAlgorithm.SHA256, hashlib.sha256(str(number).encode()).hexdigest())
    pieces = PieceMap(HashAlgorithm.SHA256, MiB, bytes(range(32)) * PIECES)
    mirrors = [Mirror(f"https://m{n}.example.org/image", n) for n in range(1, MIRRORS + 1)]
    return Manifest("image.img", PIECES * MiB, (digest,), pieces, tuple(mirrors))


def _daemon(host: Host, count: int) -> list[bool]:
    ready = _seconds(host.serve)
    lines = [
        _line(f"ready with {count} templates", ready, READY_SECONDS, "s"),
        _resident(host, "resident"),
    ]
    began = time.monotonic()
    found = len(_ls(host))
    first = time.monotonic() - began
    if found != count:
        raise LabError(f"{found} files are in the mount, not {count}")
    again = _seconds(lambda: _ls(host))
    lines.append(_line("plain ls, the first", first, LISTING_SECONDS, "s"))
    lines.append(_line("plain ls, again", again, LISTING_SECONDS, "s"))
    one = _seconds(lambda: host.ddfs("status", f"m{count // 2:05}"))
    lines.append(_line("ddfs status of one", one, STATUS_SECONDS, "s"))
    lines.append(_resident(host, "resident after listing"))
    return lines


def _ls(host: Host) -> list[str]:
    # Another process, since a hanging mount must not take this one with it.
    command = ["ls", host.templates]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def _volumes(host: Host, libvirtd: Libvirtd, plain: Path, add: Callable[[], None]) -> bool:
    """libvirt's pool on the mount beside one of as many files on a local disk."""
    host.ddfs("pool", "define", "--name", "templates")
    libvirtd.virsh("pool-define-as", "plain", "dir", "--target", plain)
    libvirtd.virsh("pool-start", "plain")
    ours, peers = _Pool(libvirtd, "templates"), _Pool(libvirtd, "plain")
    looks = [(ours.refresh(), peers.refresh(), ours.list(), peers.list()) for _ in range(RUNS)]
    medians = [statistics.median(figures) for figures in zip(*looks, strict=True)]

    adding, alone, ours_all = ours.slowest_list(add, AFTER_SECONDS)
    print(f"adding {ADDED} took {adding:.1f} s", flush=True)
    # Nobody refreshes a plain pool by himself: one asked for by hand, as ddfs asks for one.
    *_, peers_all = peers.slowest_list(peers.refresh, 0)
    _beside("pool-refresh", medians[0], medians[1])
    _beside("vol-list with nothing going on", medians[2], medians[3])
    _beside("slowest vol-list that meets a refresh", ours_all, peers_all)
    names = "slowest vol-list while 100 are added", "slowest vol-list in the refresh after that"
    figures = alone, ours_all
    reached = [_line(*line, VOLUMES_SECONDS, "s") for line in zip(names, figures, strict=True)]
    return all(reached)


@dataclass(frozen=True)
class _Pool:
    """A pool of libvirt as a client sees it; all figures in seconds."""

    libvirtd: Libvirtd
    name: str

    def refresh(self) -> float:
        return _seconds(lambda: self.libvirtd.virsh("pool-refresh", self.name))

    def list(self) -> float:
        return _seconds(lambda: self.libvirtd.virsh("vol-list", self.name))

    def slowest_list(
        self, action: Callable[[], object], after: float
    ) -> tuple[float, float, float]:
        """How long *action* took beside another client that lists on and on; the slowest list
        that ended before it did, and the slowest until *after* seconds later.
        """
        took, ended = [0.0], threading.Event()

        def look() -> None:
            while not ended.is_set():
                took.append(self.list())

        other = threading.Thread(target=look)
        other.start()
        try:
            seconds = _seconds(action)
            meanwhile = max(took)
            time.sleep(after)
        finally:
            ended.set()
            other.join()
        return seconds, meanwhile, max(took)


def _plain(directory: Path, count: int) -> Path:
    """*count* small images as a host without ddfs has them, of as many bytes as libvirt reads
    of a template: a header and nothing else.
    """
    directory.mkdir()
    one = directory / "p00000.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", one, "1M"]
    subprocess.run(command, check=True)
    os.truncate(one, max(one.stat().st_size, HEAD_BYTES))
    image = one.read_bytes()
    for number in range(1, count):
        (directory / f"p{number:05}.qcow2").write_bytes(image)
    return directory


def _resident(host: Host, what: str) -> bool:
    assert host.daemon is not None
    text = Path(f"/proc/{host.daemon.pid}/statm").read_text()
    mib = int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / MiB
    return _line(what, mib, RESIDENT_MIB, "MiB")


def _beside(what: str, ours: float, plain: float) -> None:
    ratio = f"{ours / plain:.1f} times"
    print(f"{what:46} {ours:8.2f} s    plain dir pool {plain:.2f} s, {ratio}", flush=True)


def _line(what: str, figure: float, bar: float, unit: str) -> bool:
    reached = figure <= bar
    verdict = "ok" if reached else "MISSED"
    print(f"{what:46} {figure:8.2f} {unit:4} at most {bar:g} {unit:4} {verdict}", flush=True)
    return reached


def _seconds(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began
