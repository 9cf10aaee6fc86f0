"""A metalink document to manifests."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ddfs import errors
from ddfs.metalink import limits, mirrors, names
from ddfs.metalink.draft import FileDraft
from ddfs.metalink.v3 import NAMESPACES, Version3
from ddfs.metalink.v4 import NAMESPACE, Version4
from ddfs.metalink.walk import walk
from ddfs.model import Manifest

# How much of a document tells what it is, and how much is needed for that.
SNIFF_LENGTH: Final = 4096

_WEB_PAGE = re.compile(rb"\s*<(!doctype\s+html|html)\b", re.IGNORECASE)
_METALINK = re.compile(rb"<([\w.-]{1,40}:)?metalink[\s>]")
_MAX_NAMES_LISTED: Final = 20


@dataclass(frozen=True)
class Document:
    """What a document says.

    ``files`` in its order, at least one. ``dynamic_origin`` is the address of an up-to-date
    copy, if it names one. ``warnings`` are one line each. ``refused`` has the name and the
    reason of each file that is not usable while others are.
    """

    files: tuple[Manifest, ...]
    dynamic_origin: str | None = None
    warnings: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


def looks_like_metalink(start: bytes) -> bool:
    """Whether the first :data:`SNIFF_LENGTH` bytes of something are a metalink's."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        start = start.replace(b"\0", b"")
    text = start[:SNIFF_LENGTH].removeprefix(codecs.BOM_UTF8).lstrip(b"\xff\xfe").lstrip()
    return text.startswith(b"<") and _METALINK.search(text) is not None


def parse(document: bytes, *, base_url: str | None, location: str | None = None) -> Document:
    """The files of *document*, in version 4 or 3, with their mirrors best first.

    *base_url* is where the document came from, for relative addresses; *location* the
    preferred country of mirrors. A file that is not usable (unsafe name, no http address,
    contradictions) is left out with a warning while others are usable. Raises
    :class:`errors.DocumentError` with one line that says why nothing is.
    """
    if len(document) > limits.MAX_DOCUMENT_BYTES:
        raise errors.DocumentError(
            f"a document of more than {limits.MAX_DOCUMENT_BYTES} bytes is not read"
        )
    warnings: list[str] = []
    text = _trimmed(document, warnings)
    found: list[Version3 | Version4] = []

    def choose(namespace: str, name: str, attributes: Mapping[str, str]) -> Version3 | Version4:
        found.append(_grammar(namespace, name, attributes, warnings))
        return found[0]

    comment = walk(text, choose, base_url)
    grammar = found[0]
    if not grammar.files:
        said = f"; it says {names.shown(comment)}" if comment else ""
        raise errors.DocumentError(f"the metalink has no file in it{said}")
    files, refused = _judge(grammar.files, location)
    warnings += [reason for _, reason in refused]
    origin = _origin(grammar.dynamic_origin, base_url)
    return Document(files, origin, tuple(warnings), refused)


def select(document: Document, name: str | None) -> Manifest:
    """The only file, or the one called *name*; else :class:`errors.DocumentError`."""
    if name is None and len(document.files) == 1:
        return document.files[0]
    listed = ", ".join(names.shown(f.name) for f in document.files[:_MAX_NAMES_LISTED])
    if len(document.files) > _MAX_NAMES_LISTED:
        listed += f" and {len(document.files) - _MAX_NAMES_LISTED} more"
    if name is None:
        raise errors.DocumentError(f"it has {len(document.files)} files, say which: {listed}")
    key = names.same_name_key(name)
    for manifest in document.files:
        if names.same_name_key(manifest.name) == key:
            return manifest
    for refused_name, reason in document.refused:
        if names.same_name_key(refused_name) == key:
            raise errors.DocumentError(reason)
    raise errors.DocumentError(f"it has no file {names.shown(name)}, but {listed}")


def _trimmed(document: bytes, warnings: list[str]) -> bytes:
    """Without the blanks that some programs write before the XML declaration."""
    # Not strip(): of a large document it would be a second one.
    if not document or document.isspace():
        raise errors.DocumentError("the document is empty")
    if _WEB_PAGE.match(document.removeprefix(codecs.BOM_UTF8)):
        raise errors.DocumentError("this is a web page, not a metalink")
    trimmed = document.lstrip()
    if len(trimmed) == len(document) or not trimmed.startswith(b"<?xml"):
        return document
    warnings.append("blanks before the XML declaration")
    return trimmed


def _grammar(
    namespace: str, name: str, attributes: Mapping[str, str], warnings: list[str]
) -> Version3 | Version4:
    if name.lower() == "html":
        raise errors.DocumentError("this is a web page, not a metalink")
    if name == "metalink" and namespace == NAMESPACE:
        return Version4()
    if name == "metalink" and namespace in NAMESPACES:
        return Version3(attributes)
    # wget2 and librepo read such documents, so they are in use.
    if name == "metalink" and not namespace and attributes.get("version", "").startswith("3"):
        warnings.append("no namespace; read as version 3")
        return Version3(attributes)
    inside = f" in namespace {names.shown(namespace)}" if namespace else " without a namespace"
    raise errors.DocumentError(f"not a metalink: its root is {names.shown(name)}{inside}")


def _judge(
    drafts: list[FileDraft], location: str | None
) -> tuple[tuple[Manifest, ...], tuple[tuple[str, str], ...]]:
    """The usable files, and the others with their reasons."""
    repeated = Counter(names.same_name_key(draft.name) for draft in drafts if draft.name)
    for name, count in repeated.items():
        if count > 1:
            raise errors.DocumentError(f"it has {count} files of the same name {names.shown(name)}")
    files: list[Manifest] = []
    refused: list[tuple[str, str]] = []
    for draft in drafts:
        try:
            files.append(draft.finish(location))
        except errors.DocumentError as error:
            refused.append((draft.name or "", error.message))
    if not files:
        more = f" (and {len(refused) - 1} other files are not usable either)"
        raise errors.DocumentError(refused[0][1] + (more if len(refused) > 1 else ""))
    return tuple(files), tuple(refused)


def _origin(text: str | None, base_url: str | None) -> str | None:
    if text is None:
        return None
    try:
        return mirrors.to_uri(text, base_url)
    except errors.InvalidValueError:
        return None
