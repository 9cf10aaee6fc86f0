"""Bringing the schema of a file up to what this version of ddfs writes.

Alembic takes a third of a second to import, so it is, only when there is something to do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Engine

from ddfs import errors
from ddfs.catalogue.failures import damaged
from ddfs.model import MiB

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)

# The newest file in versions/; a test compares.
HEAD: Final = "0007"

SCRIPTS: Final = Path(__file__).parent / "migrations"

# Up to here the whole file is checked at every start (about 0.1 s); piece hashes can make it
# much larger, and then damage shows when the page is used.
MAX_CHECKED_BYTES: Final = 64 * MiB


def bring_up(engine: Engine, path: Path, *, scripts: Path = SCRIPTS, head: str = HEAD) -> None:
    """Give the file at *path*, which *engine* opens, the schema *head*.

    An empty file gets it, an older one is copied to ``catalogue.db.before-HEAD`` first; all
    of it is one transaction. Raises :class:`errors.CatalogueError` for a newer schema, and
    for a database of something else; then nothing was changed.
    """
    found = _check(path)
    if found == head:
        return
    config = _config(scripts)
    if found is not None:
        _refuse_unknown(config, path, found)
        copy = _back_up(path, head)
        log.info("%s: schema %s becomes %s; the old file is kept as %s", path, found, head, copy)
    from alembic import command

    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, head)


def _config(scripts: Path) -> Config:
    from alembic.config import Config

    config = Config()
    # % is the escape of the parser behind it.
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _refuse_unknown(config: Config, path: Path, found: str) -> None:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found not in known:
        raise errors.CatalogueError(
            f"{path}: written by a newer ddfs (schema {found}); install that one again, or put "
            "back the copy that it made before it changed the file"
        )


def _check(path: Path) -> str | None:
    """The schema of a sound file, None for an empty one."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
        if not tables:
            return None
        if "alembic_version" not in tables:
            raise errors.CatalogueError(f"{path}: the database of another program; move it away")
        if path.stat().st_size <= MAX_CHECKED_BYTES:
            complaint = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if complaint != "ok":
                raise damaged(path, " ".join(complaint.split()))
        version = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if version is None:
            raise damaged(path, "it does not say which schema it has")
        return str(version[0])


def _back_up(path: Path, head: str) -> Path:
    """A complete copy, under its name only once it is durable."""
    copy = path.with_name(f"{path.name}.before-{head}")
    fresh = path.with_name(f"{copy.name}.tmp")
    fresh.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(path)) as source,
        contextlib.closing(sqlite3.connect(fresh)) as target,
    ):
        source.backup(target)
    fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(fresh, copy)
    return copy
