"""The elements of version 4: RFC 5854, ``urn:ietf:params:xml:ns:metalink``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ddfs import errors
from ddfs.metalink import limits, mirrors
from ddfs.metalink.draft import FileDraft, UrlDraft

NAMESPACE: Final = "urn:ietf:params:xml:ns:metalink"

_METALINK_TYPES: Final = frozenset({"application/metalink4+xml", "application/metalink+xml"})

# RFC 3156 section 7; the only kind that RFC 5854 section 4.2.13 names.
_OPENPGP: Final = "application/pgp-signature"


class Version4:
    """The grammar. ``files`` and ``dynamic_origin`` are what was found."""

    paths: Final = frozenset(
        {
            "origin",
            "file",
            "file/size",
            "file/hash",
            "file/signature",
            "file/pieces",
            "file/pieces/hash",
            "file/url",
            "file/metaurl",
        }
    )

    def __init__(self) -> None:
        self.files: list[FileDraft] = []
        self.dynamic_origin: str | None = None

    def open(self, path: str, attributes: Mapping[str, str]) -> None:
        """As in :class:`walk.Grammar`."""
        if path == "file":
            if len(self.files) >= limits.MAX_FILES:
                raise errors.DocumentError(f"it has more than {limits.MAX_FILES} files")
            self.files.append(FileDraft(attributes.get("name")))
        elif path == "file/pieces":
            self.files[-1].add_pieces(attributes.get("type", ""), attributes.get("length", ""))

    def close(
        self, path: str, attributes: Mapping[str, str], text: str, base_url: str | None
    ) -> None:
        """As in :class:`walk.Grammar`."""
        if path == "file/pieces/hash":
            self.files[-1].pieces[-1].add(text)
        elif path == "file/url":
            self.files[-1].add_url(
                UrlDraft(
                    text,
                    base_url,
                    mirrors.priority_from(attributes.get("priority")),
                    mirrors.location_from(attributes.get("location")),
                    # Version 3's word; openSUSE's version 4 documents use it as well.
                    mirrors.connections_from(attributes.get("maxconnections")),
                )
            )
        elif path == "file/hash":
            self.files[-1].add_hash(attributes.get("type", ""), text)
        elif path == "file/signature":
            if attributes.get("mediatype", "").strip().lower() == _OPENPGP:
                self.files[-1].add_signature(text)
        elif path == "file/size":
            self.files[-1].sizes.append(text)
        elif path == "file/metaurl":
            kind = attributes.get("mediatype", "").strip().lower()
            if kind in _METALINK_TYPES:
                self.files[-1].metalinks += 1
            else:
                self.files[-1].metafiles += 1
        elif path == "origin" and attributes.get("dynamic", "").strip() in ("true", "1"):
            self.dynamic_origin = text
