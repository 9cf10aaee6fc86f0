"""Manifests to fill a catalogue with."""

import hashlib
import subprocess

from sqlalchemy import Engine, event

from ddfs.declaration import Declaration
from ddfs.model import Digest, HashAlgorithm, ImageFormat, Manifest, MiB, Mirror, PieceMap


def digest(seed):
    return Digest(HashAlgorithm.SHA256, hashlib.sha256(str(seed).encode()).hexdigest())


def manifest(seed=1, *, size=10 * MiB, pieces=True, urls=("https://a/x", "https://b/x"), **more):
    count = -(-size // MiB)
    piece_map = PieceMap(HashAlgorithm.SHA256, MiB, bytes(range(32)) * count) if pieces else None
    mirrors = tuple(Mirror(url, priority=n + 1, location="de") for n, url in enumerate(urls))
    return Manifest("image.qcow2", size, (digest(seed),), piece_map, mirrors, **more)


def add(catalogue, name="debian-12", of=None, **more):
    values = {
        "format": ImageFormat.QCOW2,
        "manifest": of or manifest(),
        "declaration": Declaration("https://example.org/image.meta4"),
        "virtual_size": 20 * MiB,
        "added_at": 1700000000.25,
        "head_is_verified": True,
        **more,
    }
    return catalogue.add_template(name=name, **values)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def statements(doing):
    """What is said to the database meanwhile."""
    said = []

    def note(_connection, _cursor, statement, *_):
        said.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        doing()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    return said
