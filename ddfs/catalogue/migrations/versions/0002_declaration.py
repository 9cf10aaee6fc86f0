"""What the operator declared about a template, so that its source can be asked again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "template", sa.Column("declaration", sa.Text(), nullable=False, server_default="{}")
    )
