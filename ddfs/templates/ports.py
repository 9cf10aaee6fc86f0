"""What the templates need of others; ``daemon.py`` hands it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ddfs.declaration import Declaration
from ddfs.model import ImageFormat, Manifest, Template
from ddfs.versions import SourceState, Validator


class Catalogue(Protocol):
    """Where templates are written down. Blocks; called in a thread."""

    def templates(self) -> list[Template]:
        """All templates."""

    def add_template(
        self,
        *,
        name: str,
        format: ImageFormat,  # noqa: A002 - the column's name
        manifest: Manifest,
        declaration: Declaration,
        virtual_size: int | None,
        added_at: float,
        head_is_verified: bool,
        seen: Sequence[Validator] = (),
    ) -> Template:
        """Write down a template and the manifest of its content."""

    def all_declarations(self) -> dict[str, Declaration]:
        """What was declared about each name."""

    def declare(self, name: str, declaration: Declaration, signature: str | None, /) -> Template:
        """Write down another declaration about a name, and the signature that it asks for."""

    def manifest(self, content_id: str) -> Manifest:
        """The manifest of a content."""

    def remove_template(self, name: str) -> Template:
        """Forget a template."""


class Heads(Protocol):
    """The stored heads. Small local files: read in the event loop, written in a thread."""

    def put(self, content_id: str, data: bytes) -> None:
        """Store or replace."""

    def read(self, content_id: str, offset: int, length: int) -> bytes:
        """Bytes of a head; fewer at its end."""

    def size(self, content_id: str) -> int:
        """Its length; 0 where there is none."""

    def remove(self, content_id: str) -> None:
        """Forget a head."""


class ImageFacts(Protocol):
    """What an inspector found."""

    @property
    def format(self) -> ImageFormat:
        """What it is."""

    @property
    def virtual_size(self) -> int | None:
        """The size of the disk inside, if its head says so."""


class HeadInspector(Protocol):
    """Looks at the head of an image. Raises :class:`errors.ImageError`."""

    def __call__(
        self, data: bytes, *, size: int, claimed: ImageFormat | None, tail: bytes
    ) -> ImageFacts:
        """The facts; *tail* has the last bytes, if they were read."""
        ...


class Families(Protocol):
    """Where it is written down what all versions of a name share. Blocks."""

    def states(self) -> Mapping[str, SourceState]:
        """What is known of the source of each family."""

    def last_version(self, name: str) -> int:
        """The highest number that a version ever had."""

    def record_state(self, name: str, state: SourceState) -> None:
        """Write down how a check ended."""


class Manifests(Protocol):
    """Where manifests are written down. Blocks."""

    def manifest(self, content_id: str) -> Manifest:
        """The manifest of a content."""

    def merge_mirrors(self, content_id: str, manifest: Manifest) -> None:
        """Add what another source of the same content knows."""
