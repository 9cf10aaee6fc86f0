"""The XML of a document: defused, capped, and never a tree.

Elements outside the root's namespace, and those that the grammar does not name, are
stepped over with everything in them (RFC 5854 section 5.3). That matters: MirrorManager
puts the size and hashes of older versions into a foreign element, and addresses stand under
``publisher`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import urljoin
from xml.etree.ElementTree import ParseError

from defusedxml.common import DTDForbidden
from defusedxml.ElementTree import DefusedXMLParser

from ddfs import errors
from ddfs.metalink import limits, names

_XML_BASE: Final = "{http://www.w3.org/XML/1998/namespace}base"

# The attributes that real documents use; they do not count as foreign.
_KNOWN_ATTRIBUTES: Final = frozenset(
    {
        "name",
        "type",
        "length",
        "piece",
        "priority",
        "preference",
        "location",
        "maxconnections",
        "version",
        "dynamic",
        "mediatype",
        "origin",
        "generator",
        "pubdate",
        "refreshdate",
        "protocol",
    }
)


class Grammar(Protocol):
    """What the elements of one version mean. Paths are relative to the root, ``file/url``."""

    @property
    def paths(self) -> frozenset[str]:
        """The elements that mean something; every other is stepped over."""

    def open(self, path: str, attributes: Mapping[str, str]) -> None:
        """The element starts."""

    def close(
        self, path: str, attributes: Mapping[str, str], text: str, base_url: str | None
    ) -> None:
        """The element ends; *text* is its own, without its children's."""


# Given the root's namespace, name and attributes; raises DocumentError for a foreign root.
ChooseGrammar = Callable[[str, str, Mapping[str, str]], Grammar]


class _Element:
    """An open element that means something."""

    __slots__ = ("attributes", "base_url", "length", "path", "text")

    def __init__(self, path: str, attributes: Mapping[str, str], base_url: str | None) -> None:
        self.path = path
        self.attributes = attributes
        self.base_url = base_url
        self.text: list[str] = []
        self.length = 0


class _Walker:
    """What the parser calls: start, end, data and comment."""

    def __init__(self, choose: ChooseGrammar, base_url: str | None) -> None:
        self._choose = choose
        self._base_url = base_url
        self._grammar: Grammar | None = None
        self._namespace = ""
        self._open: list[_Element] = []
        # Depth at which an element that is stepped over began; 0 while none is.
        self._skipped_from = 0
        self._depth = 0
        self._elements = 0
        self._foreign_names: set[str] = set()
        self.first_comment = ""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._elements += 1
        self._depth += 1
        if self._elements > limits.MAX_ELEMENTS:
            raise errors.DocumentError(f"it has more than {limits.MAX_ELEMENTS} elements")
        if self._depth > limits.MAX_DEPTH:
            raise errors.DocumentError(f"its elements are nested more than {limits.MAX_DEPTH} deep")
        for name in attributes:
            if name not in _KNOWN_ATTRIBUTES:
                self._count_foreign(name)
        if self._skipped_from:
            self._count_foreign(tag)
            return
        namespace, _, name = tag.rpartition("}")
        namespace = namespace.removeprefix("{")
        if self._grammar is None:
            self._grammar = self._choose(namespace, name, attributes)
            self._namespace = namespace
            self._push("", attributes, self._base_url)
            return
        parent = self._open[-1]
        path = f"{parent.path}/{name}" if parent.path else name
        if namespace != self._namespace or path not in self._grammar.paths:
            self._skipped_from = self._depth
            self._count_foreign(tag)
            return
        self._push(path, attributes, parent.base_url)
        self._grammar.open(path, attributes)

    def _push(self, path: str, attributes: Mapping[str, str], base_url: str | None) -> None:
        base = attributes.get(_XML_BASE)
        if base is not None and len(base) <= limits.MAX_TEXT_LENGTH:
            base_url = urljoin(base_url or "", base.strip())
        self._open.append(_Element(path, attributes, base_url))

    def _count_foreign(self, name: str) -> None:
        self._foreign_names.add(name)
        if len(self._foreign_names) > limits.MAX_FOREIGN_NAMES:
            raise errors.DocumentError(
                f"it has more than {limits.MAX_FOREIGN_NAMES} different foreign names"
            )

    def end(self, _tag: str) -> None:
        if self._skipped_from:
            if self._skipped_from == self._depth:
                self._skipped_from = 0
            self._depth -= 1
            return
        self._depth -= 1
        element = self._open.pop()
        if element.path and self._grammar is not None:
            text = "".join(element.text)
            self._grammar.close(element.path, element.attributes, text, element.base_url)

    def data(self, text: str) -> None:
        if self._skipped_from or not self._open:
            return
        element = self._open[-1]
        element.length += len(text)
        if element.length > limits.MAX_TEXT_LENGTH:
            # Blanks between the children of a large element add up.
            if text.isspace():
                return
            raise errors.DocumentError(
                f"the text of <{element.path or 'metalink'}> is longer than "
                f"{limits.MAX_TEXT_LENGTH} characters"
            )
        element.text.append(text)

    def declaration(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.lower() not in limits.ENCODINGS:
            raise errors.DocumentError(
                f"not well-formed XML, or cut off: its encoding {names.shown(encoding)} is not read"
            )

    def comment(self, text: str) -> None:
        if not self.first_comment:
            self.first_comment = " ".join(text.split())[: limits.MAX_TEXT_LENGTH]


def walk(document: bytes, choose: ChooseGrammar, base_url: str | None) -> str:
    """Calls the grammar that *choose* gives for each element; returns the first comment.

    Raises :class:`errors.DocumentError`, and nothing else whatever *document* is. No entity
    is expanded and nothing is fetched: a document type declaration ends it.
    """
    walker = _Walker(choose, base_url)
    parser = DefusedXMLParser(target=walker, forbid_dtd=True)
    # expat calls it before it looks for the encoding.
    parser.parser.XmlDeclHandler = walker.declaration
    try:
        _feed(parser, document)
    except DTDForbidden as error:
        if error.name.lower() == "html":
            raise errors.DocumentError("this is a web page, not a metalink") from None
        raise errors.DocumentError(
            "it has a document type declaration, which is refused since it can name entities"
        ) from None
    except (ParseError, ValueError, LookupError) as error:
        # The last two: encodings that Python has not, or not for a parser.
        raise errors.DocumentError(f"not well-formed XML, or cut off: {error}") from None
    return walker.first_comment


def _feed(parser: Any, document: bytes) -> None:
    view = memoryview(document)
    expat = parser.parser
    for start in range(0, len(view), limits.CHUNK_BYTES):
        chunk = view[start : start + limits.CHUNK_BYTES]
        parser.feed(chunk)
        waiting = start + len(chunk) - max(expat.CurrentByteIndex, 0)
        if waiting > limits.MAX_TOKEN_BYTES:
            raise errors.DocumentError(
                f"it has a tag or comment of more than {limits.MAX_TOKEN_BYTES} bytes"
            )
    parser.close()
