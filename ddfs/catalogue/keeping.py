"""What is pinned, and when contents were last used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert as upsert

from ddfs.catalogue import schema


class KeepingTables:
    """As :class:`ddfs.catalogue.catalogue.Catalogue`, which makes it: any thread, one
    transaction for each call, :class:`ddfs.errors.CatalogueError`.
    """

    def __init__(self, transaction: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._transaction = transaction

    def pinned(self) -> set[int]:
        """The rows of the templates that are pinned."""
        with self._transaction() as connection:
            return set(connection.scalars(select(schema.pin.c.template_row)))

    def pin(self, row: int) -> None:
        """Pin the template of *row*; again is fine, and so is one that is gone by now."""
        known = select(schema.template.c.row).where(schema.template.c.row == row)
        with self._transaction() as connection:
            if connection.scalar(known) is not None:
                statement = upsert(schema.pin).values(template_row=row)
                connection.execute(statement.on_conflict_do_nothing())

    def unpin(self, row: int) -> None:
        """Unpin it; one that is not pinned is fine."""
        with self._transaction() as connection:
            connection.execute(delete(schema.pin).where(schema.pin.c.template_row == row))

    def last_uses(self) -> dict[str, float]:
        """When each content was last used, in POSIX seconds; none of those that never were."""
        table = schema.last_use
        with self._transaction() as connection:
            found = connection.execute(select(table.c.content_id, table.c.used_at))
            return {row.content_id: row.used_at for row in found}

    def record_uses(self, uses: Mapping[str, float]) -> None:
        """Write uses down, in place of older ones; unknown contents are left out."""
        table = schema.last_use
        with self._transaction() as connection:
            wanted = select(schema.content.c.content_id).where(
                schema.content.c.content_id.in_(list(uses))
            )
            for content_id in connection.scalars(wanted).all():
                used_at = uses[content_id]
                statement = upsert(table).values(content_id=content_id, used_at=used_at)
                connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=["content_id"], set_={"used_at": used_at}
                    )
                )
