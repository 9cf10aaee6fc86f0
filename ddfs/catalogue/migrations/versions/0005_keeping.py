"""What is pinned, and when contents were last used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "pin",
        sa.Column("template_row", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["template_row"],
            ["template.row"],
            name=op.f("fk_pin_template_row"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("template_row", name=op.f("pk_pin")),
    )
    op.create_table(
        "last_use",
        sa.Column("content_id", sa.Text(), nullable=False),
        sa.Column("used_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["content_id"],
            ["content.content_id"],
            name=op.f("fk_last_use_content_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("content_id", name=op.f("pk_last_use")),
    )
