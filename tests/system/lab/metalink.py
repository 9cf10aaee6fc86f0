"""Metalink documents for the lab's mirrors, written without ddfs, so that neither vouches for
the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape, quoteattr

MIB: Final = 1024 * 1024


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_metalink(
    path: Path, image: Path, urls: Sequence[str], *, piece_length: int | None = MIB
) -> Path:
    """A Metalink 4 document for *image* on *urls*, the first preferred; None is no pieces."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<metalink xmlns="urn:ietf:params:xml:ns:metalink">',
        f"<file name={quoteattr(image.name)}><size>{image.stat().st_size}</size>",
        f'<hash type="sha-256">{sha256_of(image)}</hash>',
        *([] if piece_length is None else _pieces(image, piece_length)),
        *(f'<url priority="{n}">{escape(url)}</url>' for n, url in enumerate(urls, start=1)),
        "</file></metalink>",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def _pieces(image: Path, length: int) -> list[str]:
    lines = [f'<pieces length="{length}" type="sha-256">']
    with image.open("rb") as file:
        while piece := file.read(length):
            lines.append(f"<hash>{hashlib.sha256(piece).hexdigest()}</hash>")
    return [*lines, "</pieces>"]
