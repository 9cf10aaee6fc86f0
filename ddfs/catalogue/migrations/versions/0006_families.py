"""Versions of a name, what their source said, and piece hashes of our own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both tables; every name that is there is the first version of its family."""
    op.create_table(
        "family",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("last_version", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.Text()),
        sa.Column("checked_at", sa.Float()),
        sa.Column("message", sa.Text(), nullable=False, server_default=""),
        sa.Column("seen", sa.Text(), nullable=False, server_default="[]"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_family")),
    )
    op.create_table(
        "fingerprint",
        sa.Column("content_id", sa.Text(), nullable=False),
        sa.Column("piece_length", sa.BigInteger(), nullable=False),
        sa.Column("digests", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["content_id"],
            ["content.content_id"],
            name=op.f("fk_fingerprint_content_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("content_id", name=op.f("pk_fingerprint")),
    )
    op.execute("INSERT INTO family (name, last_version) SELECT name, 1 FROM template")
