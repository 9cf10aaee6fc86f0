"""What is fetched: files in memory, what they hash to, and metalinks for them."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# The name of every file here, so that one server root differs from another in content alone.
NAME: Final = "image.bin"

# Random, then repeated with a number in each MiB: no two pieces are the same, and 4 GiB take
# seconds.
BLOCK_BYTES: Final = 64 * MIB

# The liar's bytes: one is wrong in every second piece of 4 MiB.
LIE_EVERY_BYTES: Final = 8 * MIB
# Or in every KiB, so that no piece of it is right.
DENSE_EVERY_BYTES: Final = KIB
LIE_AT: Final = 77


@dataclass(frozen=True)
class Material:
    """A file in *root*, and its hashes: SHA-256 of all and of its pieces, in hex."""

    root: Path
    size: int
    sha256: str
    piece_length: int
    pieces: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.root / NAME


def make(root: Path, size: int, piece_length: int) -> Material:
    """Random bytes; *size* is a multiple of a MiB."""
    root.mkdir()
    block = bytearray(os.urandom(min(BLOCK_BYTES, size)))
    whole, pieces = hashlib.sha256(), []
    with (root / NAME).open("wb") as file:
        for at in range(0, size, len(block)):
            for mib in range(0, len(block), MIB):
                block[mib : mib + 8] = (at + mib).to_bytes(8, "big")
            part = memoryview(block)[: size - at]
            file.write(part)
            whole.update(part)
            pieces += [
                hashlib.sha256(part[start : start + piece_length]).hexdigest()
                for start in range(0, len(part), piece_length)
            ]
    return Material(root, size, whole.hexdigest(), piece_length, tuple(pieces))


def make_zeros(root: Path, size: int, piece_length: int) -> Material:
    """A sparse file: each of its pieces has the same hash, so that none has to be read.

    Its whole-file hash is made up. A fetch of it has to be stopped before that is compared.
    """
    root.mkdir()
    with (root / NAME).open("wb") as file:
        file.truncate(size)
    piece = hashlib.sha256(bytes(piece_length)).hexdigest()
    return Material(root, size, "0" * 64, piece_length, (piece,) * (size // piece_length))


def make_lies(root: Path, truth: Material, places: range) -> Path:
    """A copy of *truth* with the bytes at *places* wrong; the new root."""
    root.mkdir()
    shutil.copyfile(truth.path, root / NAME)
    with (root / NAME).open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        for at in places:
            content[at] ^= 0xFF
    return root


def metalink(
    path: Path,
    material: Material,
    urls: Sequence[tuple[str, int]],
    *,
    has_pieces: bool,
    has_whole: bool = True,
    is_whole_wrong: bool = False,
) -> Path:
    """Writes a document of version 4 for *urls* with their priorities."""
    whole = hashlib.sha256(b"wrong").hexdigest() if is_whole_wrong else material.sha256
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<metalink xmlns="urn:ietf:params:xml:ns:metalink">',
        f'<file name="{NAME}">',
        f"<size>{material.size}</size>",
    ]
    if has_whole:
        lines.append(f'<hash type="sha-256">{whole}</hash>')
    if has_pieces:
        lines.append(f'<pieces length="{material.piece_length}" type="sha-256">')
        lines += [f"<hash>{piece}</hash>" for piece in material.pieces]
        lines.append("</pieces>")
    lines += [f'<url priority="{priority}">{url}/{NAME}</url>' for url, priority in urls]
    lines += ["</file>", "</metalink>", ""]
    path.write_text("\n".join(lines))
    return path


def is_right(path: Path, material: Material) -> bool:
    """Whether the file is there with the right bytes, all of them."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == material.sha256
    except OSError:
        return False
