"""Who named a mirror, so that a restart does not forget which addresses it may have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Mirrors of before are taken as the operator's own, as they were used."""
    op.add_column("mirror", sa.Column("named_from", sa.Text()))
