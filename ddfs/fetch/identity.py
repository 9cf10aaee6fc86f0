"""Which version of a file a mirror serves, as far as it says (RFC 9110 section 8.8). Pure.

A mirror may get another version while we read the old one. Its size may be the same, and its
parts must not be mixed. ETags of the several servers behind one name often differ for equal
files, because they are made of inode numbers or of when the copy was made, so that one
validator that stayed as it was is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Identity:
    """What the first answer of one mirror said; shared by all connections to it."""

    etag: str | None = None
    modified: str | None = None

    def has_changed(self, headers: Mapping[str, str]) -> bool:
        """Whether an answer with *headers* (names in lower case) is of another version.

        The first one is remembered, and a changed one from then on.
        """
        etag, modified = headers.get("etag"), headers.get("last-modified")
        pairs = [(self.etag, etag), (self.modified, modified)]
        known = [(old, new) for old, new in pairs if old is not None and new is not None]
        changed = bool(known) and all(old != new for old, new in known)
        if changed:
            self.etag, self.modified = etag, modified
        else:
            self.etag, self.modified = self.etag or etag, self.modified or modified
        return changed
