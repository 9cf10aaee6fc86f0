"""The first schema. The meaning of the columns is in ``schema.py``."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "content",
        sa.Column("content_id", sa.Text(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("size_is_stated", sa.Boolean(), nullable=False),
        sa.Column("digests", sa.Text(), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("piece_algorithm", sa.Text()),
        sa.Column("piece_length", sa.BigInteger()),
        sa.Column("piece_digests", sa.LargeBinary()),
        sa.CheckConstraint(
            "(piece_algorithm IS NULL) = (piece_length IS NULL)"
            " AND (piece_length IS NULL) = (piece_digests IS NULL)",
            name=op.f("ck_content_pieces"),
        ),
        sa.PrimaryKeyConstraint("content_id", name=op.f("pk_content")),
    )
    op.create_table(
        "mirror",
        sa.Column("content_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("location", sa.Text()),
        sa.Column("max_connections", sa.Integer()),
        sa.ForeignKeyConstraint(
            ["content_id"],
            ["content.content_id"],
            name=op.f("fk_mirror_content_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("content_id", "position", name=op.f("pk_mirror")),
    )
    op.create_table(
        "template",
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("content_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("virtual_size", sa.BigInteger()),
        sa.Column("added_at", sa.Float(), nullable=False),
        sa.Column("head_is_verified", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["content_id"], ["content.content_id"], name=op.f("fk_template_content_id")
        ),
        sa.PrimaryKeyConstraint("row", name=op.f("pk_template")),
        sa.UniqueConstraint("name", name=op.f("uq_template_name")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_template_content_id", "template", ["content_id"])
    op.create_table(
        "spool_reference",
        sa.Column("content_id", sa.Text(), nullable=False),
        sa.Column("primary_storage", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("bytes_here", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("path", sa.Text()),
        sa.Column("device", sa.BigInteger()),
        sa.Column("inode", sa.BigInteger()),
        sa.Column("size", sa.BigInteger()),
        sa.Column("mtime_ns", sa.BigInteger()),
        sa.Column("last_error", sa.Text()),
        sa.ForeignKeyConstraint(
            ["content_id"],
            ["content.content_id"],
            name=op.f("fk_spool_reference_content_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("content_id", "primary_storage", name=op.f("pk_spool_reference")),
    )
