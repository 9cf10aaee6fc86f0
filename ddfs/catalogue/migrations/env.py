"""What Alembic runs. It gets its connection from ``migrate``, in a transaction of that."""

from __future__ import annotations

from alembic import context

from ddfs.catalogue.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite cannot alter most things; Alembic then copies the table.
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
