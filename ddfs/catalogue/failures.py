"""SQLite's failures in words that say what to do. The one place that reads their codes."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import exc

from ddfs import errors

_DAMAGED: Final = (
    "it is damaged; stop ddfs, put a backup in its place, or move it away and register the "
    "templates again (published files stay where they are)"
)
_FULL: Final = "no room left on its disk; free some, then try again"
_READ_ONLY: Final = "it cannot be written; make its directory writable, or set another state_dir"

# By primary result code (https://www.sqlite.org/rescode.html), the low byte of the full one.
_ADVICE: Final = {
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: _READ_ONLY,
    sqlite3.SQLITE_PERM: _READ_ONLY,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: "its disk failed or is full; look there, then try again",
    sqlite3.SQLITE_BUSY: "another program holds it; end that, then try again",
    sqlite3.SQLITE_LOCKED: "another program holds it; end that, then try again",
}

# The same for what the file system says itself.
_ERRNO_ADVICE: Final = {
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
}


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite, SQLAlchemy and the file system raise into ``CatalogueError``.

    A constraint that fails is our own bug, because every method asks first; it stays as it is.
    """
    try:
        yield
    except exc.IntegrityError:
        raise
    except exc.SQLAlchemyError as error:
        raise _error(path, getattr(error, "orig", None) or error) from error
    except (sqlite3.Error, OSError) as error:
        raise _error(path, error) from error


def damaged(path: Path, detail: str) -> errors.CatalogueError:
    """The error for a file that SQLite opens and that is not right."""
    return errors.CatalogueError(f"{path}: {_DAMAGED} ({detail})")


def _error(path: Path, error: BaseException) -> errors.CatalogueError:
    code = getattr(error, "sqlite_errorcode", None)
    advice = _ADVICE.get(code & 0xFF) if code is not None else None
    if isinstance(error, OSError):
        advice = _ERRNO_ADVICE.get(error.errno or 0)
    detail = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    if advice is None:
        return errors.CatalogueError(f"{path}: {detail}")
    return errors.CatalogueError(f"{path}: {advice} ({detail})")
