"""The elements of Metalink 3.0, ``http://www.metalinker.org/``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from ddfs import errors
from ddfs.metalink import limits, mirrors
from ddfs.metalink.draft import FileDraft, UrlDraft

# Arch Linux left out the slash in 2009.
NAMESPACES: Final = frozenset({"http://www.metalinker.org/", "http://www.metalinker.org"})

# Values of url@type that name something else than the file itself.
_METAFILE_TYPES: Final = frozenset({"bittorrent", "magnet", "ed2k"})


class Version3:
    """The grammar. ``files`` and ``dynamic_origin`` are what was found."""

    paths: Final = frozenset(
        {
            "files",
            "files/file",
            "files/file/size",
            "files/file/verification",
            "files/file/verification/hash",
            "files/file/verification/signature",
            "files/file/verification/pieces",
            "files/file/verification/pieces/hash",
            "files/file/resources",
            "files/file/resources/url",
        }
    )

    def __init__(self, root_attributes: Mapping[str, str]) -> None:
        self.files: list[FileDraft] = []
        is_dynamic = root_attributes.get("type", "").strip() == "dynamic"
        self.dynamic_origin = root_attributes.get("origin") if is_dynamic else None
        # What resources@maxconnections says. By the specification it is the total; Fedora
        # says 1 there for everything, which would forbid a second mirror. So it holds for
        # each mirror.
        self._connections: int | None = None

    def open(self, path: str, attributes: Mapping[str, str]) -> None:
        """As in :class:`walk.Grammar`."""
        if path == "files/file":
            if len(self.files) >= limits.MAX_FILES:
                raise errors.DocumentError(f"it has more than {limits.MAX_FILES} files")
            self.files.append(FileDraft(attributes.get("name")))
        elif path == "files/file/verification/pieces":
            self.files[-1].add_pieces(attributes.get("type", ""), attributes.get("length", ""))
        elif path == "files/file/resources":
            self._connections = mirrors.connections_from(attributes.get("maxconnections"))

    def close(
        self, path: str, attributes: Mapping[str, str], text: str, base_url: str | None
    ) -> None:
        """As in :class:`walk.Grammar`."""
        if path == "files/file/verification/pieces/hash":
            self.files[-1].pieces[-1].add(text, attributes.get("piece"))
        elif path == "files/file/verification/hash":
            self.files[-1].add_hash(attributes.get("type", ""), text)
        elif path == "files/file/verification/signature":
            if attributes.get("type", "").strip().lower() == "pgp":
                self.files[-1].add_signature(text)
        elif path == "files/file/size":
            self.files[-1].sizes.append(text)
        elif path == "files/file/resources/url":
            self._close_url(attributes, text, base_url)

    def _close_url(self, attributes: Mapping[str, str], text: str, base_url: str | None) -> None:
        if _is_metafile(attributes.get("type", "").strip().lower(), text):
            self.files[-1].metafiles += 1
            return
        own = mirrors.connections_from(attributes.get("maxconnections"))
        self.files[-1].add_url(
            UrlDraft(
                text,
                base_url,
                mirrors.priority_from_preference(attributes.get("preference")),
                mirrors.location_from(attributes.get("location")),
                self._connections if own is None else own,
            )
        )


def _is_metafile(kind: str, address: str) -> bool:
    """Whether a url element names a torrent; without a type, the suffix says (section 4.1.2.4)."""
    if kind:
        return kind in _METAFILE_TYPES
    try:
        return urlsplit(address.strip(mirrors.XML_BLANKS)).path.endswith(".torrent")
    except ValueError:
        return False
