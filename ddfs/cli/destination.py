"""Where ``ddfs fetch`` puts the file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ddfs import errors


def refuse_taken(path: Path) -> None:
    """Raises :class:`~ddfs.errors.NameTakenError` for what exists and is no directory,
    :class:`~ddfs.errors.InvalidValueError` for what can be no file's name.
    """
    try:
        is_taken = path.is_symlink() or (path.exists() and not path.is_dir())
    except OSError as error:
        raise errors.InvalidValueError(f"{path}: {error.strerror}") from None
    if is_taken:
        raise errors.NameTakenError(f"{path}: exists already, and is not overwritten")


def destination_of(output: str | None, manifest_name: str) -> Path:
    """Where the file goes: *output*; inside it if it is a directory; else here."""
    target = Path(output or ".")
    if not target.is_dir() and not (output or "").endswith("/"):
        return target
    name = PurePosixPath(manifest_name).name
    if name in ("", ".", ".."):
        raise errors.InvalidValueError(
            f"{manifest_name!r} is no name for a file: say where to with -o FILE"
        )
    return target / name
