"""By which signature the file of a template has to be signed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Of templates of before, no signature was asked for."""
    op.add_column("template", sa.Column("signature", sa.Text()))
