"""What is asked for when a template is registered, and what a name that is there allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddfs import errors
from ddfs.declaration import Declaration
from ddfs.model import Manifest, Template


@dataclass(frozen=True, slots=True)
class Registration:
    """A new template's name, and what an operator declares about it."""

    name: str
    declaration: Declaration


def same_content(versions: Sequence[Template], manifest: Manifest, asked: Registration) -> Template:
    """The newest of *versions* that has the content; :class:`errors.TemplateExistsError` if none
    has it, or in another format than is asked for.
    """
    found = [t for t in versions if t.content_id == manifest.content_id]
    if not found:
        raise errors.TemplateExistsError(
            f"{asked.name} is bound to other content ({versions[-1].content_id}); a name never "
            "changes its content: register the new one under a new name, or as a version of "
            f"this one with: ddfs template update {asked.name} SOURCE"
        )
    existing = found[-1]
    if asked.declaration.format not in (None, existing.format):
        raise errors.TemplateExistsError(
            f"{existing.name} is there already, as {existing.format.value}"
        )
    return existing
