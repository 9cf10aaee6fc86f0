"""The tables, as the newest migration leaves them. A test compares the two.

Times are POSIX seconds. Nothing is ever NULL that is not said to be.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

# Constraints need names that a later migration can say.
METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Unsigned64(TypeDecorator[int]):
    """An unsigned 64-bit number in a signed column, by its bits.

    Inode numbers use the top bits on overlayfs and NFS; SQLite and PostgreSQL have signed
    integers only.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, _dialect: Dialect) -> int | None:
        """To the column."""
        return value - 2**64 if value is not None and value >= 2**63 else value

    def process_result_value(self, value: int | None, _dialect: Dialect) -> int | None:
        """From the column."""
        return value if value is None or value >= 0 else value + 2**64


# What can be fetched. Written at registering; a second template with the same content only
# adds to it.
content = Table(
    "content",
    METADATA,
    # Manifest.content_id: the strongest digest, or the hash over the piece hashes.
    Column("content_id", Text, primary_key=True),
    # The file name in the document, for people.
    Column("file_name", Text, nullable=False),
    # Bytes; known by the time that it is registered.
    Column("size", BigInteger, nullable=False),
    # Whether a document gave the size, and not the mirrors.
    Column("size_is_stated", Boolean, nullable=False),
    # JSON list of ALG:HEX, strongest first.
    Column("digests", Text, nullable=False),
    # JSON list of what the reader of the document passed over.
    Column("notes", Text, nullable=False),
    # JSON of a model.Packing, NULL for a file that is not packed; its size and SHA-256 are
    # completed when it was unpacked for the first time.
    Column("packing", Text),
    # The three are NULL together when nobody gave piece hashes. The blob stands last, so
    # that a listing does not read past it.
    Column("piece_algorithm", Text),
    Column("piece_length", BigInteger),
    Column("piece_digests", LargeBinary),
    CheckConstraint(
        "(piece_algorithm IS NULL) = (piece_length IS NULL)"
        " AND (piece_length IS NULL) = (piece_digests IS NULL)",
        name="pieces",
    ),
)

# Who serves a content, best first. Written with it.
mirror = Table(
    "mirror",
    METADATA,
    Column(
        "content_id", Text, ForeignKey("content.content_id", ondelete="CASCADE"), primary_key=True
    ),
    # 0 is the best.
    Column("position", Integer, primary_key=True),
    Column("url", Text, nullable=False),
    # As in model.Mirror; the last two are NULL where the document says nothing.
    Column("priority", Integer, nullable=False),
    Column("location", Text),
    Column("max_connections", Integer),
    # As in model.Mirror: NULL where the operator named it, or nobody remembers who did.
    Column("named_from", Text),
)

# A name bound to a content. Written once at registering, never changed, deleted by
# `template remove`.
template = Table(
    "template",
    METADATA,
    # Inode numbers derive from it, so it never comes back: AUTOINCREMENT.
    Column("row", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    # model.ImageFormat's value.
    Column("format", Text, nullable=False),
    Column("content_id", Text, ForeignKey("content.content_id"), nullable=False),
    # What the operator gave: an address or a path.
    Column("source", Text, nullable=False),
    # Bytes that a guest sees; NULL where the head does not tell.
    Column("virtual_size", BigInteger),
    Column("added_at", Float, nullable=False),
    # Whether the head was hashed and inspected at registering.
    Column("head_is_verified", Boolean, nullable=False),
    # JSON: the plain form of a declaration.Declaration, secrets included; {} for a template
    # of before it was kept, which has its source alone.
    Column("declaration", Text, nullable=False, server_default="{}"),
    # The armored OpenPGP signature that the file has to have; NULL where none was asked for.
    Column("signature", Text),
    Index("ix_template_content_id", "content_id"),
    sqlite_autoincrement=True,
)

# What all versions of a name share. Written with the first of them, gone with the last.
family = Table(
    "family",
    METADATA,
    # The name without a version.
    Column("name", Text, primary_key=True),
    # The highest number that a version ever had, so that none comes back.
    Column("last_version", Integer, nullable=False),
    # The last check of the source: versions.Verdict's value and when; NULL before the first.
    Column("verdict", Text),
    Column("checked_at", Float),
    # What it came to, for people; empty where there is nothing to say.
    Column("message", Text, nullable=False, server_default=""),
    # JSON list of versions.Validator: what servers said when the source was as it is known.
    Column("seen", Text, nullable=False, server_default="[]"),
)

# Our own piece hashes of a complete file where no document gave any, so that damage can be
# told from good bytes. Written once the whole-file hash held.
fingerprint = Table(
    "fingerprint",
    METADATA,
    Column(
        "content_id", Text, ForeignKey("content.content_id", ondelete="CASCADE"), primary_key=True
    ),
    Column("piece_length", BigInteger, nullable=False),
    # SHA-256 of each piece, one behind the other.
    Column("digests", LargeBinary, nullable=False),
)

# How far a content has come on a primary storage. Written by the spool as it goes on.
spool_reference = Table(
    "spool_reference",
    METADATA,
    Column(
        "content_id", Text, ForeignKey("content.content_id", ondelete="CASCADE"), primary_key=True
    ),
    # The storage's name in the settings.
    Column("primary_storage", Text, primary_key=True),
    # model.SpoolState's value.
    Column("state", Text, nullable=False),
    Column("bytes_here", BigInteger, nullable=False),
    Column("updated_at", Float, nullable=False),
    # model.PublishedFile; the five are NULL together unless it is published.
    Column("path", Text),
    Column("device", Unsigned64),
    Column("inode", Unsigned64),
    Column("size", BigInteger),
    Column("mtime_ns", BigInteger),
    # Why the last fetch failed; NULL if none did.
    Column("last_error", Text),
)

# The templates that are never removed to make room.
pin = Table(
    "pin",
    METADATA,
    Column(
        "template_row", Integer, ForeignKey("template.row", ondelete="CASCADE"), primary_key=True
    ),
)

# When a content was last used: published, named by the gate's yes, cloned.
last_use = Table(
    "last_use",
    METADATA,
    Column(
        "content_id", Text, ForeignKey("content.content_id", ondelete="CASCADE"), primary_key=True
    ),
    Column("used_at", Float, nullable=False),
)
