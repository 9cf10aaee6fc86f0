"""Templates, contents and spool references in one SQLite file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
)
from sqlalchemy import update as update_
from sqlalchemy.dialects.sqlite import insert as upsert

from ddfs import errors
from ddfs.catalogue import migrate, rows, schema
from ddfs.catalogue.failures import translated
from ddfs.catalogue.families import Families, forget_empty, note_version
from ddfs.catalogue.keeping import KeepingTables
from ddfs.declaration import Declaration
from ddfs.model import (
    Digest,
    ImageFormat,
    Manifest,
    Mirror,
    SpoolReference,
    SpoolState,
    Template,
)
from ddfs.versions import Validator

FILE_NAME: Final = "catalogue.db"

# Ours is the only process that writes; this is for an operator's sqlite3 shell.
BUSY_TIMEOUT_SECONDS: Final = 5

# However often a content is registered from elsewhere: more mirrors than this help nobody.
MAX_MIRRORS: Final = 1000


class Catalogue:
    """The catalogue of one host; made by :meth:`open`.

    Every method may run in any thread at any time, is one transaction, durable when it
    returns and undone when it raises. All raise :class:`errors.CatalogueError` when the file
    cannot be read or written.
    """

    def __init__(self, path: Path, engine: Engine) -> None:
        self.path = path
        self._engine = engine
        self.families = Families(self._transaction)

    @classmethod
    def open(cls, state_dir: Path) -> Self:
        """The catalogue in *state_dir*, both made where they are missing.

        Its schema is brought up to date. A file that is damaged, not ours, or of a newer
        ddfs is refused and left as it is.
        """
        path = state_dir / FILE_NAME
        with translated(path):
            # Sources may carry passwords.
            os.makedirs(state_dir, mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            engine = _engine(path)
            try:
                migrate.bring_up(engine, path)
                # Takes the lock for writing: a read-only file is refused now, not later.
                with engine.begin():
                    pass
            except BaseException:
                engine.dispose()
                raise
        return cls(path, engine)

    def close(self) -> None:
        """Close the file; afterwards nothing else may be called."""
        with translated(self.path):
            self._engine.dispose()

    @property
    def keeping(self) -> KeepingTables:
        """Pins and last uses."""
        return KeepingTables(self._transaction)

    def add_template(
        self,
        *,
        name: str,
        format: ImageFormat,  # noqa: A002 -- the word of the model
        manifest: Manifest,
        declaration: Declaration,
        virtual_size: int | None,
        added_at: float,
        head_is_verified: bool,
        seen: Sequence[Validator] = (),
    ) -> Template:
        """Bind *name* to the content of *manifest*, whose size must be known.

        *seen* is what the servers of its source said. A content that is known already gets
        the mirrors of *manifest* as well, as in :meth:`merge_mirrors`. Raises
        :class:`errors.TemplateExistsError` when the name is taken.
        """
        with self._transaction() as connection:
            self._refuse_taken(connection, name, manifest.content_id)
            self._store(connection, manifest)
            values = {
                "name": name,
                "format": format.value,
                "content_id": manifest.content_id,
                "source": declaration.source,
                "declaration": json.dumps(declaration.as_plain()),
                "virtual_size": virtual_size,
                "added_at": added_at,
                "head_is_verified": head_is_verified,
                "signature": manifest.signature,
            }
            connection.execute(insert(schema.template).values(values))
            note_version(connection, name, seen)
            return self._template(connection, name)

    def remove_template(self, name: str) -> Template:
        """Free *name*. Raises :class:`errors.UnknownTemplateError`.

        With the last name of a content its manifest and references go too; unless it is
        published, because its file is still there and ours: then they stay for a template
        that comes back, until :meth:`forget_reference`.
        """
        with self._transaction() as connection:
            gone = self._template(connection, name)
            connection.execute(delete(schema.template).where(schema.template.c.name == name))
            forget_empty(connection, gone.family)
            self._drop_unused(connection, gone.content_id)
            return gone

    def templates(self) -> list[Template]:
        """All templates, in the order in which they were added."""
        with self._transaction() as connection:
            found = connection.execute(_TEMPLATES.order_by(schema.template.c.row))
            return [rows.template_of(row) for row in found]

    def declarations(self, content_id: str) -> list[Declaration]:
        """What was declared about the names of a content, the newest last."""
        table = schema.template
        with self._transaction() as connection:
            found = connection.execute(
                select(table.c.source, table.c.declaration)
                .where(table.c.content_id == content_id)
                .order_by(table.c.row)
            )
            return [_declaration_of(row) for row in found]

    def all_declarations(self) -> dict[str, Declaration]:
        """What was declared about every template, by its name."""
        table = schema.template
        with self._transaction() as connection:
            found = connection.execute(select(table.c.name, table.c.source, table.c.declaration))
            return {row.name: _declaration_of(row) for row in found}

    def declare(self, name: str, declaration: Declaration, signature: str | None) -> Template:
        """Write down another declaration about *name*, and the signature that its file has to
        have; the template as it is from now on.

        Raises :class:`errors.UnknownTemplateError`.
        """
        table = schema.template
        plain = json.dumps(declaration.as_plain())
        with self._transaction() as connection:
            self._template(connection, name)
            connection.execute(
                update_(table)
                .where(table.c.name == name)
                .values(source=declaration.source, declaration=plain, signature=signature)
            )
            return self._template(connection, name)

    def manifest(self, content_id: str) -> Manifest:
        """The manifest of a content that some template or reference has.

        Raises :class:`errors.UnknownTemplateError`.
        """
        with self._transaction() as connection:
            found = self._manifest(connection, content_id)
        if found is None:
            raise errors.UnknownTemplateError(f"no template has the content {content_id}")
        return found

    def merge_mirrors(self, content_id: str, manifest: Manifest) -> None:
        """Add what another source of the same content knows.

        New mirrors go behind those that are there; piece hashes are taken if there were
        none, and so is a stated size. Raises :class:`errors.DocumentError` when it states
        another size: then one of both lies.
        """
        if manifest.content_id != content_id:
            raise ValueError(f"{manifest.content_id} is not {content_id}")
        with self._transaction() as connection:
            self._store(connection, manifest)

    def record_unpacked(self, content_id: str, size: int, sha256: str) -> None:
        """Write down what came out of a packed content, once it is verified.

        Nothing happens when the content is not known any more.
        """
        with self._transaction() as connection:
            known = self._manifest(connection, content_id)
            if known is None or known.packing is None:
                return
            proved = replace(known.packing, size=size, sha256=sha256)
            table = schema.content
            connection.execute(
                update_(table)
                .where(table.c.content_id == content_id)
                .values(packing=rows.packing_text(proved))
            )

    def pin(self, content_id: str, digest: Digest) -> None:
        """Write down what the bytes of an unverified content are: once, and for ever.

        Raises :class:`errors.ChecksumError` when it is something else already. Nothing
        happens when the content is not known any more.
        """
        table = schema.content
        with self._transaction() as connection:
            known = self._manifest(connection, content_id)
            if known is None or known.digests == (digest,):
                return
            if known.digests or known.unverified_id is None:
                raise errors.ChecksumError(
                    f"{known.name}: its bytes are bound to {known.digest}, not to {digest}"
                )
            connection.execute(
                update_(table)
                .where(table.c.content_id == content_id)
                .values(digests=json.dumps([str(digest)]))
            )

    def references(self) -> list[SpoolReference]:
        """All spool references."""
        table = schema.spool_reference
        with self._transaction() as connection:
            found = connection.execute(
                select(table).order_by(table.c.content_id, table.c.primary_storage)
            )
            return [rows.reference_of(row) for row in found]

    def record_reference(self, reference: SpoolReference) -> None:
        """Write *reference* down, in place of an older one of its content and storage.

        Nothing happens when the content is not known any more: a fetch may end after the
        last template with its content was removed.
        """
        values = rows.reference_values(reference)
        keys = ("content_id", "primary_storage")
        statement = upsert(schema.spool_reference).values(values)
        statement = statement.on_conflict_do_update(
            index_elements=list(keys),
            set_={column: value for column, value in values.items() if column not in keys},
        )
        with self._transaction() as connection:
            if self._knows(connection, reference.content_id):
                connection.execute(statement)

    def forget_reference(self, content_id: str, primary: str) -> None:
        """Delete a reference, and the manifest too if nobody has the content any more.

        None there is fine.
        """
        table = schema.spool_reference
        with self._transaction() as connection:
            connection.execute(
                delete(table).where(
                    table.c.content_id == content_id, table.c.primary_storage == primary
                )
            )
            self._drop_unused(connection, content_id)

    # Within a transaction

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with translated(self.path), self._engine.begin() as connection:
            yield connection

    def _refuse_taken(self, connection: Connection, name: str, content_id: str) -> None:
        found = connection.execute(_TEMPLATES.where(schema.template.c.name == name)).one_or_none()
        if found is None:
            return
        if found.content_id == content_id:
            raise errors.TemplateExistsError(f"{name} is registered already, with this content")
        raise errors.TemplateExistsError(
            f"{name} is registered already, with other content; a name is bound for ever, so "
            "give the new version a name of its own"
        )

    def _template(self, connection: Connection, name: str) -> Template:
        found = connection.execute(_TEMPLATES.where(schema.template.c.name == name)).one_or_none()
        if found is None:
            raise errors.UnknownTemplateError(
                f"no template is called {name!r}; ddfs template list shows all"
            )
        return rows.template_of(found)

    def _knows(self, connection: Connection, content_id: str) -> bool:
        table = schema.content
        found = connection.execute(
            select(table.c.content_id).where(table.c.content_id == content_id)
        )
        return found.first() is not None

    def _manifest(self, connection: Connection, content_id: str) -> Manifest | None:
        table = schema.content
        row = connection.execute(select(table).where(table.c.content_id == content_id)).first()
        if row is None:
            return None
        mirrors = connection.execute(
            select(schema.mirror)
            .where(schema.mirror.c.content_id == content_id)
            .order_by(schema.mirror.c.position)
        )
        return rows.manifest_of(row, tuple(rows.mirror_of(mirror) for mirror in mirrors))

    def _store(self, connection: Connection, manifest: Manifest) -> None:
        if manifest.size is None:
            raise ValueError(f"{manifest.name}: a manifest without a size cannot be stored")
        known = self._manifest(connection, manifest.content_id)
        if known is None:
            connection.execute(insert(schema.content).values(rows.content_values(manifest)))
        else:
            self._complete(connection, known, manifest)
        self._add_mirrors(connection, known, manifest)

    def _complete(self, connection: Connection, known: Manifest, more: Manifest) -> None:
        if known.size != more.size:
            raise errors.DocumentError(
                f"{more.name}: {more.size} bytes with a digest that belongs to a file of "
                f"{known.size} bytes ({known.name}); one of the two sources is wrong"
            )
        changes: dict[str, Any] = {}
        if more.packing and known.packing and known.packing.size is None and more.packing.size:
            changes["packing"] = rows.packing_text(replace(known.packing, size=more.packing.size))
        if more.size_is_stated and not known.size_is_stated:
            changes["size_is_stated"] = True
        if more.pieces is not None and known.pieces is None:
            changes |= rows.piece_values(more.pieces)
        if changes:
            table = schema.content
            connection.execute(
                update_(table).where(table.c.content_id == known.content_id).values(changes)
            )

    def _add_mirrors(
        self, connection: Connection, known: Manifest | None, manifest: Manifest
    ) -> None:
        there = {mirror.url for mirror in known.mirrors} if known else set()
        for mirror in manifest.mirrors:
            self._name_again(connection, known, mirror)
        fresh = {m.url: m for m in manifest.mirrors if m.url not in there}.values()
        first, room = len(there), MAX_MIRRORS - len(there)
        values = [
            rows.mirror_values(manifest.content_id, first + number, mirror)
            for number, mirror in enumerate(list(fresh)[: max(0, room)])
        ]
        if values:
            connection.execute(insert(schema.mirror), values)

    def _name_again(self, connection: Connection, known: Manifest | None, named: Mirror) -> None:
        """Of two who name a mirror, the one nearer to it counts: the operator, or who is in
        a special network himself.
        """
        there = next((m for m in known.mirrors if m.url == named.url), None) if known else None
        if known is None or there is None or there.named_from is None:
            return
        if named.named_from is None or (named.named_from and not there.named_from):
            table = schema.mirror
            connection.execute(
                update_(table)
                .where(table.c.content_id == known.content_id, table.c.url == named.url)
                .values(named_from=named.named_from)
            )

    def _drop_unused(self, connection: Connection, content_id: str) -> None:
        """Delete a content that has no name and is not published, with all that is its own."""
        named, kept = schema.template, schema.spool_reference
        users = select(func.count()).select_from(named).where(named.c.content_id == content_id)
        published = (
            select(func.count())
            .select_from(kept)
            .where(kept.c.content_id == content_id, kept.c.state == SpoolState.PUBLISHED.value)
        )
        if connection.scalar(users) or connection.scalar(published):
            return
        table = schema.content
        connection.execute(delete(table).where(table.c.content_id == content_id))


_TEMPLATES: Final = select(
    schema.template,
    schema.content.c.size,
    schema.content.c.size_is_stated,
    schema.content.c.packing,
    schema.content.c.digests,
    schema.content.c.piece_algorithm,
).join_from(schema.template, schema.content)


def _declaration_of(row: Any) -> Declaration:
    return Declaration.from_plain({"source": row.source, **json.loads(row.declaration)})


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_SECONDS}
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # Transactions are begun below; the driver's own way leaves DDL outside of them.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # At once for writing: one that starts as a reader and then wants to write fails
        # with SQLITE_BUSY, without any waiting, when another has written meanwhile.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
