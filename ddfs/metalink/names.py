"""Which names of files are refused.

RFC 5854 section 4.1.2.1 forbids names that leave their folder. Nothing is stored under a
document's name, but names are printed, compared and given as ``--file``; so what a
terminal could show differently from what it is goes too. Everything else is literal:
``~/x``, ``-rf``, ``con`` and leading blanks are names like others.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from ddfs import errors
from ddfs.metalink import limits

# Joiners that Persian, Hindi and emoji need; every other format character (the ones that
# turn the direction of text, the byte order mark) only serves to deceive.
_JOINERS: Final = "\u200c\u200d"
_HIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_NO_XML_CHARACTERS: Final = "\ufffe\uffff"


def shown(text: str) -> str:
    """*text* as an error may repeat it: quoted, one line, of bounded length."""
    if len(text) > limits.SHOWN_LENGTH:
        text = f"{text[: limits.SHOWN_LENGTH]}…"
    return repr(text)


def validate_file_name(name: str) -> str:
    """*name* itself, if a document may call a file so; else :class:`errors.DocumentError`."""
    fault = _fault(name)
    if fault is not None:
        raise errors.DocumentError(f"the file name {shown(name)} is refused: {fault}")
    return name


def same_name_key(name: str) -> str:
    """Equal for names that a person cannot tell apart: Unicode normalisation form C."""
    return unicodedata.normalize("NFC", name)


def _fault(name: str) -> str | None:
    if not name:
        return "it is empty"
    if any(_is_hidden(c) for c in name):
        return "it has control or direction characters"
    if "\\" in name:
        return "it has a backslash"
    if len(name.encode()) > limits.MAX_NAME_BYTES:
        return f"it is longer than {limits.MAX_NAME_BYTES} bytes"
    components = name.split("/")
    if len(components) > limits.MAX_NAME_DEPTH:
        return f"it is more than {limits.MAX_NAME_DEPTH} folders deep"
    if any(component in ("", ".", "..") for component in components):
        return "it is not a plain relative path"
    if any(len(component.encode()) > limits.MAX_NAME_COMPONENT_BYTES for component in components):
        return f"a part of it is longer than {limits.MAX_NAME_COMPONENT_BYTES} bytes"
    return None


def _is_hidden(character: str) -> bool:
    if character in _JOINERS:
        return False
    hidden = unicodedata.category(character) in _HIDDEN_CATEGORIES
    return hidden or character in _NO_XML_CHARACTERS
