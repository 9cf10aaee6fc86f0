"""What all versions of a name share, and the piece hashes that we made ourselves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from ddfs.catalogue import schema
from ddfs.model import HashAlgorithm, PieceMap
from ddfs.names import split_version
from ddfs.versions import SourceState, Validator, Verdict

Begin = Callable[[], AbstractContextManager[Connection]]


class Families:
    """A part of the catalogue: each method is one transaction, as the catalogue's are."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin

    def states(self) -> dict[str, SourceState]:
        """What is known of the source of each family."""
        with self._begin() as connection:
            return {
                row.name: SourceState(
                    Verdict(row.verdict) if row.verdict is not None else None,
                    row.checked_at,
                    row.message,
                    tuple(Validator.from_plain(each) for each in json.loads(row.seen)),
                )
                for row in connection.execute(select(schema.family))
            }

    def last_version(self, name: str) -> int:
        """The highest number that a version of *name* ever had; 1 for a name not seen yet."""
        table = schema.family
        with self._begin() as connection:
            found = connection.scalar(select(table.c.last_version).where(table.c.name == name))
            return found or 1

    def record_state(self, name: str, state: SourceState) -> None:
        """Write down how a check ended; nothing happens where the family is gone."""
        values = {
            "verdict": state.verdict.value if state.verdict else None,
            "checked_at": state.checked_at,
            "message": state.message,
            "seen": _plain(state.seen),
        }
        table = schema.family
        with self._begin() as connection:
            connection.execute(update(table).where(table.c.name == name).values(values))

    def fingerprint(self, content_id: str) -> PieceMap | None:
        """Our own piece hashes of a content, if they were ever made."""
        table = schema.fingerprint
        with self._begin() as connection:
            row = connection.execute(select(table).where(table.c.content_id == content_id)).first()
        return PieceMap(HashAlgorithm.SHA256, row.piece_length, row.digests) if row else None

    def fingerprinted(self) -> set[str]:
        """The contents that have such hashes."""
        with self._begin() as connection:
            return set(connection.scalars(select(schema.fingerprint.c.content_id)))

    def record_fingerprint(self, content_id: str, pieces: PieceMap) -> None:
        """Write them down; nothing happens where the content is not known any more."""
        values = {
            "content_id": content_id,
            "piece_length": pieces.piece_length,
            "digests": pieces.digests,
        }
        table = schema.content
        with self._begin() as connection:
            if connection.scalar(
                select(func.count()).select_from(table).where(table.c.content_id == content_id)
            ):
                statement = upsert(schema.fingerprint).values(values)
                connection.execute(
                    statement.on_conflict_do_update(index_elements=["content_id"], set_=values)
                )


def note_version(connection: Connection, name: str, seen: Sequence[Validator]) -> None:
    """A version is new: its family is checked and found as it is, and counts it."""
    family, number = split_version(name)
    values = {"name": family, "last_version": number or 1, "seen": _plain(seen)}
    changed = {
        "last_version": func.max(schema.family.c.last_version, number or 1),
        "seen": values["seen"],
        "verdict": None,
        "message": "",
    }
    connection.execute(
        upsert(schema.family)
        .values(values)
        .on_conflict_do_update(index_elements=["name"], set_=changed)
    )


def forget_empty(connection: Connection, family: str) -> None:
    """Delete a family that has no version any more; its name is free."""
    names = connection.scalars(
        select(schema.template.c.name).where(schema.template.c.name.startswith(family))
    )
    if not any(split_version(name)[0] == family for name in names):
        connection.execute(delete(schema.family).where(schema.family.c.name == family))


def _plain(seen: Sequence[Validator]) -> str:
    return json.dumps([dataclasses.asdict(each) for each in seen])
