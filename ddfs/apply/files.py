"""Files to declarations: all that is wrong in all of them, at once, with file, line and key.

::

    [template.debian-12]
    source = "https://cloud.example.org/debian-12.qcow2"
    checksum_url = "SHA512SUMS"
    check_every = "1d"

The keys are those of :class:`ddfs.declaration.Declaration`. A relative path is relative to
the directory of its file.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ddfs import errors
from ddfs.apply.lines import key_lines, line_of
from ddfs.declaration import PATH_KEYS, Declaration, problems_of
from ddfs.model import MiB
from ddfs.names import validate_template_name

# 10,000 templates with all their keys; a larger file is none that a person wrote.
MAX_FILE_BYTES: Final = 8 * MiB

_TABLE: Final = "template"

_SYNTAX: Final = re.compile(r"\(at line (\d+), column \d+\)|\(at end of document\)")


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """What is wrong, and where: ``key`` is dotted, as in ``template.debian-12.format``."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.file}:{self.line}: {key}{self.message}"


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was read. ``path`` is absolute, ``shown`` as it was typed."""

    path: str
    shown: str
    data: bytes


def read(files: Iterable[File]) -> tuple[dict[str, Declaration], list[Mistake]]:
    """What is declared in *files*, by name; and every mistake in them, in order."""
    declared: dict[str, Declaration] = {}
    places: dict[str, tuple[str, int]] = {}
    mistakes: list[Mistake] = []
    for file in files:
        try:
            document, lines = _parse(file)
        except _NotTomlError as error:
            mistakes.append(Mistake(file.shown, error.line, "", str(error)))
            continue
        for key in document.keys() - {_TABLE}:
            text = f"unknown; a file declares [{_TABLE}.NAME]"
            mistakes.append(Mistake(file.shown, line_of(lines, (key,)), key, text))
        tables = document.get(_TABLE, {})
        if not isinstance(tables, dict):
            text = f"no table; write [{_TABLE}.NAME]"
            mistakes.append(Mistake(file.shown, line_of(lines, (_TABLE,)), _TABLE, text))
            continue
        for name, plain in tables.items():
            place = file.shown, line_of(lines, (_TABLE, name))
            problems = _problems(name, plain, places)
            if not problems:
                declared[name] = Declaration.from_plain(_with_paths(plain, file.path))
            places.setdefault(name, place)
            for key, message in problems:
                path = (_TABLE, name, key) if key else (_TABLE, name)
                line = line_of(lines, path)
                mistakes.append(Mistake(file.shown, line, ".".join(path), message))
    return declared, sorted(mistakes)


class _NotTomlError(ValueError):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def _parse(file: File) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    try:
        # A byte-order mark is what some editors put there.
        text = file.data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = file.data.count(b"\n", 0, error.start) + 1
        raise _NotTomlError(line, "no UTF-8 text") from None
    try:
        return tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        found = _SYNTAX.search(str(error))
        line = int(found[1]) if found and found[1] else text.count("\n") + 1
        message = _SYNTAX.sub("", str(error)).strip()
        raise _NotTomlError(line, f"no TOML: {message[:200]}") from None
    except ValueError:
        # Python reads no decimal number of more than 4,300 digits, and does not say where.
        raise _NotTomlError(1, "no TOML: a number in it has too many digits") from None
    except RecursionError:
        raise _NotTomlError(1, "no TOML: nested too deeply") from None


def _problems(
    name: str, plain: Any, places: Mapping[str, tuple[str, int]]
) -> list[tuple[str, str]]:
    """Each as the key that it is about, empty for the table itself, and what is wrong."""
    found = []
    try:
        validate_template_name(name)
    except errors.InvalidValueError as error:
        found.append(("", str(error)))
    if name in places:
        file, line = places[name]
        found.append(("", f"declared already at {file}:{line}"))
    if not isinstance(plain, dict):
        return [*found, ("", f"no table; write [{_TABLE}.{name}]")]
    for problem in problems_of(_with_paths(plain, "/")):
        key, _, message = problem.partition(": ")
        found.append((key, message) if key in plain or key == "source" else ("", problem))
    return found


def _with_paths(plain: Mapping[str, Any], file: str) -> dict[str, Any]:
    """*plain* with its paths absolute, as seen from the directory of *file*."""
    directory = os.path.dirname(file)
    result = dict(plain)
    for key, value in plain.items():
        if not isinstance(value, str):
            continue
        is_path = key in PATH_KEYS or (key == "source" and "://" not in value)
        if is_path and value:
            result[key] = os.path.normpath(os.path.join(directory, value))
    return result
