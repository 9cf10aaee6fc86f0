"""All templates of a host in memory, and how their names are found. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ddfs import errors
from ddfs.model import Template
from ddfs.names import split_version


class Index:
    """Templates by name, by the file name in the pool, by row, by content and by family."""

    def __init__(self) -> None:
        self._by_name: dict[str, Template] = {}
        self._by_file_name: dict[str, Template] = {}
        self._by_row: dict[int, Template] = {}
        self._by_content: dict[str, list[Template]] = {}
        self._by_family: dict[str, dict[int, Template]] = {}
        self._in_order: tuple[Template, ...] | None = None

    def add(self, template: Template) -> None:
        """A template is there from now on."""
        self._in_order = None
        self._by_name[template.name] = template
        self._by_file_name[template.file_name] = template
        self._by_row[template.row] = template
        self._by_content.setdefault(template.content_id, []).append(template)
        self._by_family.setdefault(template.family, {})[template.version] = template

    def remove(self, template: Template) -> None:
        """A template is gone."""
        self._in_order = None
        del self._by_name[template.name]
        del self._by_file_name[template.file_name]
        del self._by_row[template.row]
        _drop(self._by_content, template.content_id, template)
        versions = self._by_family[template.family]
        del versions[template.version]
        if not versions:
            del self._by_family[template.family]

    def all(self) -> tuple[Template, ...]:
        """All, in order of row."""
        if self._in_order is None:
            self._in_order = tuple(self._by_row[row] for row in sorted(self._by_row))
        return self._in_order

    def by_name(self, name: str) -> Template | None:
        """The one that is called exactly so."""
        return self._by_name.get(name)

    def by_file_name(self, file_name: str) -> Template | None:
        """The one of that name in the pool."""
        return self._by_file_name.get(file_name)

    def by_row(self, row: int) -> Template | None:
        """The one of that row."""
        return self._by_row.get(row)

    def with_content(self, content_id: str) -> tuple[Template, ...]:
        """All names of one content."""
        return tuple(self._by_content.get(content_id, ()))

    def families(self) -> tuple[str, ...]:
        """The names without versions, each once."""
        return tuple(self._by_family)

    def versions(self, family: str) -> tuple[Template, ...]:
        """All versions of a family, oldest first; none where there is no such family."""
        found = self._by_family.get(family, {})
        return tuple(found[number] for number in sorted(found))

    def newest(self, name: str) -> Template:
        """The template that a person means by *name*.

        A name without a version means the newest one, ``NAME@N`` that one; the first version
        is called ``NAME``, and ``NAME@1`` where the newest is not meant. Raises
        :class:`errors.UnknownTemplateError`.
        """
        family, number = split_version(name)
        versions = self._by_family.get(family, {})
        found = versions.get(number or max(versions, default=1))
        if found is not None:
            return found
        if versions:
            there = ", ".join(f"{family}@{each}" for each in sorted(versions)[-5:])
            raise errors.UnknownTemplateError(
                f"{family!r} has no version {number}; its newest are {there}"
            )
        raise errors.UnknownTemplateError(
            f"no template is called {name!r}; ddfs template list shows those there are"
        )


def _drop(lists: dict[str, list[Template]], key: str, template: Template) -> None:
    lists[key].remove(template)
    if not lists[key]:
        del lists[key]


def names_of(templates: Sequence[Template]) -> str:
    """Some of their names, for a message."""
    shown = ", ".join(template.name for template in templates[:5])
    return shown if len(templates) <= 5 else f"{shown} and {len(templates) - 5} more"
