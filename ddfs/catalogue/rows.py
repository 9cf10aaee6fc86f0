"""Rows to values and back. No I/O."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Row

from ddfs.model import (
    Digest,
    HashAlgorithm,
    ImageFormat,
    Manifest,
    Mirror,
    Packing,
    PackingKind,
    PieceMap,
    PublishedFile,
    SpoolReference,
    SpoolState,
    Template,
    is_unverified,
)

Values = dict[str, Any]

# What is as large as the file that holds it.
_PLAIN = (ImageFormat.RAW, ImageFormat.ISO)


def content_values(manifest: Manifest) -> Values:
    """The row of *manifest* in ``content``."""
    return {
        "content_id": manifest.content_id,
        "file_name": manifest.name,
        "size": manifest.size,
        "size_is_stated": manifest.size_is_stated,
        "digests": json.dumps([str(digest) for digest in manifest.digests]),
        "notes": json.dumps(manifest.notes),
        "packing": packing_text(manifest.packing),
        **piece_values(manifest.pieces),
    }


def packing_text(packing: Packing | None) -> str | None:
    """The column ``packing``."""
    if packing is None:
        return None
    checksum = str(packing.checksum) if packing.checksum else None
    plain = {
        "kind": packing.kind.value,
        "member": packing.member,
        "size": packing.size,
        "checksum": checksum,
        "sha256": packing.sha256,
    }
    return json.dumps({key: value for key, value in plain.items() if value is not None})


def packing_of(text: str | None) -> Packing | None:
    """The packing of that column."""
    if text is None:
        return None
    plain = json.loads(text)
    return Packing(
        PackingKind(plain["kind"]),
        plain.get("member"),
        plain.get("size"),
        Digest.parse(plain["checksum"]) if "checksum" in plain else None,
        plain.get("sha256"),
    )


def piece_values(pieces: PieceMap | None) -> Values:
    """The three columns of the piece hashes."""
    return {
        "piece_algorithm": pieces.algorithm.value if pieces else None,
        "piece_length": pieces.piece_length if pieces else None,
        "piece_digests": pieces.digests if pieces else None,
    }


def mirror_values(content_id: str, position: int, mirror: Mirror) -> Values:
    """The row of one mirror."""
    return {
        "content_id": content_id,
        "position": position,
        "url": mirror.url,
        "priority": mirror.priority,
        "location": mirror.location,
        "max_connections": mirror.max_connections,
        "named_from": mirror.named_from,
    }


def manifest_of(row: Row[Any], mirrors: tuple[Mirror, ...]) -> Manifest:
    """The manifest of a row of ``content``."""
    pieces = None
    if row.piece_length is not None:
        pieces = PieceMap(HashAlgorithm(row.piece_algorithm), row.piece_length, row.piece_digests)
    return Manifest(
        name=row.file_name,
        size=row.size,
        digests=tuple(Digest.parse(text) for text in json.loads(row.digests)),
        pieces=pieces,
        mirrors=mirrors,
        size_is_stated=row.size_is_stated,
        notes=tuple(json.loads(row.notes)),
        unverified_id=row.content_id if is_unverified(row.content_id) else None,
        packing=packing_of(row.packing),
    )


def mirror_of(row: Row[Any]) -> Mirror:
    """The mirror of a row."""
    return Mirror(row.url, row.priority, row.location, row.max_connections, row.named_from)


def template_of(row: Row[Any]) -> Template:
    """The template of a row of ``template`` joined with what ``content`` knows."""
    packing, image_format = packing_of(row.packing), ImageFormat(row.format)
    size = row.size if packing is None or packing.size is None else packing.size
    size_is_known = packing is None or packing.size is not None
    virtual_size = row.virtual_size
    if packing and virtual_size is None and size_is_known and image_format in _PLAIN:
        # It was not known yet when the template was written down.
        virtual_size = size
    return Template(
        row=row.row,
        name=row.name,
        format=image_format,
        content_id=row.content_id,
        size=size,
        virtual_size=virtual_size,
        source=row.source,
        added_at=row.added_at,
        head_is_verified=row.head_is_verified and row.signature is None,
        # As model.Manifest has it; a stored content always has a size.
        is_readable_early=packing is None
        and row.signature is None
        and row.piece_algorithm is not None
        and row.size_is_stated,
        packed_size=row.size if packing is not None else None,
        size_is_known=size_is_known,
        primary=json.loads(row.declaration).get("primary"),
        signature=row.signature,
        weak=_weak_of(row),
    )


def _weak_of(row: Row[Any]) -> str | None:
    """The kind of hash that decides, where that can be forged; None without any hash."""
    digests = json.loads(row.digests)
    # The strongest stands first.
    kind = digests[0].partition(":")[0] if digests else row.piece_algorithm
    if kind is None or HashAlgorithm(kind).is_strong:
        return None
    return str(kind) if digests else f"{kind} piece hashes"


def reference_values(reference: SpoolReference) -> Values:
    """The row of *reference*."""
    published = reference.published
    return {
        "content_id": reference.content_id,
        "primary_storage": reference.primary,
        "state": reference.state.value,
        "bytes_here": reference.bytes_here,
        "updated_at": reference.updated_at,
        "path": published.path if published else None,
        "device": published.device if published else None,
        "inode": published.inode if published else None,
        "size": published.size if published else None,
        "mtime_ns": published.mtime_ns if published else None,
        "last_error": reference.last_error,
    }


def reference_of(row: Row[Any]) -> SpoolReference:
    """The reference of a row."""
    published = None
    if row.path is not None:
        published = PublishedFile(row.path, row.device, row.inode, row.size, row.mtime_ns)
    return SpoolReference(
        content_id=row.content_id,
        primary=row.primary_storage,
        state=SpoolState(row.state),
        bytes_here=row.bytes_here,
        updated_at=row.updated_at,
        published=published,
        last_error=row.last_error,
    )
